"""``%%exercise 2.4``: run a cell, and check its answer at once against the public case."""

from __future__ import annotations

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class

from attntut.exercises.public import check, record, variant_of


@magics_class
class Exercises(Magics):
    """The two magics; the student's name decides which parameters an exercise has."""

    _student = ""  # name or number; of the class, which an extension that is loaded again keeps

    @line_magic
    def student(self, line: str) -> None:
        """``%student ada``: whose parameters the exercises take."""
        name = line.partition("#")[0].strip()
        if set(name) & set(" <>\"'"):
            print(f"An id has no spaces, brackets or quotes: got {name!r}. Write it as your instructor knows it.")
            return
        type(self)._student = name
        print(f"The exercises with numbers take the parameters of {name or 'the page'}.")

    @cell_magic
    def exercise(self, line: str, cell: str) -> None:
        """``%%exercise 2.4``: run the cell here, then alone, and ask a question if its answer is wrong."""
        number = line.strip()
        try:
            shipped = record(number)
        except ValueError as error:
            print(error)
            return
        given = shipped.get("given", [])
        mine = given[variant_of(self._student, number) % len(given)] if given else ""
        if mine:
            print(f"Exercise {number}: {mine}")
        assert self.shell is not None  # IPython made this object
        exec("import math, torch\n" + shipped["setup"], self.shell.user_ns)
        if not self.shell.run_cell(cell).success:
            return
        try:
            check(number, cell, self._student)
        except AssertionError as question:
            asked = str(question)
            print(asked if asked.startswith(f"Exercise {number} ") else f"Exercise {number}: {asked}")
        except NameError as error:
            print(f"Exercise {number}: this cell needs another one: {error}. What it uses must stand in it.")
        except Exception as error:
            print(f"Exercise {number}: {type(error).__name__}: {error}")
        else:
            right = "right, by the public check."
            if shipped["kind"] == "explain":
                right = "what you measured is right. Your prediction and your reason are for a person to read."
            print(f"Exercise {number}: {right}")
