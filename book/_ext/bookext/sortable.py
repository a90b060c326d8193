"""A table that a reader sorts and filters: what a cell of a page, or of a chapter, shows of many rows.

``book/_static/sortable.js`` brings it to life; without that script it is a table like any other. The state (text,
choices, order) is in the address, so that a link can show a part: ``world.html#norm=post&sort=-logit``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from IPython.display import HTML
from jinja2 import Environment

SEPARATOR = ", "  # between the parts of a cell that a choice names
MISSING = "–"

TABLE = """\
<div class="sortable">
<form class="sortable-filter" hidden aria-label="Filter the table">
<label>Find <input type="search" name="find" autocomplete="off" spellcheck="false"></label>
{% for key, options in choices.items() %}
<label>{{ columns[key] }} <select name="{{ key }}"><option value="">all</option>
{% for value, count in options %}
<option value="{{ value }}">{{ value }} ({{ count }})</option>
{% endfor %}
</select></label>
{% endfor %}
<button type="reset">Show all</button></form>
<p class="sortable-count" role="status">{{ rows | length }} {{ noun }}</p>
<table><caption>{{ caption }}</caption>
<thead><tr>
{% for key, title in columns.items() %}
<th scope="col" data-key="{{ key }}">{{ title }}</th>
{% endfor %}
</tr></thead><tbody>
{% for row in rows %}
<tr>
{%- for cell in row -%}
{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}
{%- endfor -%}
</tr>
{% endfor %}
</tbody></table></div>
"""


def table(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    caption: str,
    noun: str = "rows",
    choices: Collection[str] = (),
) -> HTML:
    """A table with a field that finds text, a choice for some columns, and columns that sort.

    Args:
        rows: dictionaries, or the records of a frame (``frame.to_dict("records")``); None and NaN are shown as missing.
        columns: key to heading, in order; the first column is the heading of its row. Keys not named are left out.
        caption: what the table holds, in a sentence.
        noun: what a row is, in the plural.
        choices: keys of the columns to choose by. A cell with several values joins them by ``", "``.

    Raises:
        ValueError: a choice is no column.

    Example:
        >>> shown = table([{"scheme": "gpt2", "loss": 0.25}], {"scheme": "scheme", "loss": "loss"}, caption="Runs.")
        >>> '<th scope="row">gpt2</th><td>0.25</td>' in shown.data
        True
    """
    if unknown := [key for key in choices if key not in columns]:
        raise ValueError(f"choices must be columns: got {unknown}, expected some of {[*columns]}.")
    cells = [[text(row.get(key)) for key in columns] for row in rows]
    return HTML(
        jinja.from_string(TABLE).render(
            rows=cells,
            columns=columns,
            caption=caption,
            noun=noun,
            choices={key: _options([row[i] for row in cells]) for i, key in enumerate(columns) if key in choices},
        )
    )


def text(value: Any) -> str:
    """What a cell shows: three significant digits, words as they are, a dash for what is missing.

    >>> [text(value) for value in (0.02, 4096, 12345.0, 1e-10, -0.5, float("nan"), None, "", "pre", True)]
    ['0.02', '4096', '12345', '1e−10', '−0.5', '–', '–', '–', 'pre', 'yes']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return MISSING
        whole = float(value).is_integer() and abs(value) < 1e6
        return (f"{value:.0f}" if whole else f"{value:.3g}").replace("-", "−")
    return str(value) if value is not None and str(value) else MISSING


def _options(cells: Iterable[str]) -> list[tuple[str, int]]:
    """The values of a column with the number of their rows, the missing last."""
    count = Counter(part for cell in cells for part in dict.fromkeys(cell.split(SEPARATOR)))
    return sorted(count.items(), key=lambda each: (each[0] == MISSING, each[0].casefold()))


jinja = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=True)
