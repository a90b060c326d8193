// Finds, filters and sorts the rows of a table; the state is in the address. Without this script the table is shown whole.
(() => {
  const MISSING = "–";
  const number = (text) => (text === MISSING || text.trim() === "" ? NaN : Number(text.replace(/−/g, "-")));
  const order = new Intl.Collator(undefined, { numeric: true });

  const enliven = (box) => {
    const form = box.querySelector(".sortable-filter");
    const count = box.querySelector(".sortable-count");
    const body = box.querySelector("tbody");
    const heads = [...box.querySelectorAll("thead th")];
    const keys = heads.map((head) => head.dataset.key);
    const rows = [...body.rows].map((row) => ({ row, cells: [...row.cells].map((cell) => cell.textContent) }));
    const noun = count.textContent.split(" ").slice(1).join(" ");
    const fields = [...form.elements].filter((field) => field.name);
    let sorted = ""; // the key, after a minus where the largest stands first

    const by = (column) => (a, b) => {
      const [x, y] = [a.cells[column], b.cells[column]];
      if (x === MISSING || y === MISSING) return (x === MISSING) - (y === MISSING);
      const [m, n] = [number(x), number(y)];
      const sign = sorted.startsWith("-") ? -1 : 1;
      return sign * (Number.isNaN(m) || Number.isNaN(n) ? order.compare(x, y) : m - n);
    };
    const arrange = () => {
      const column = keys.indexOf(sorted.replace("-", ""));
      body.append(...(column < 0 ? rows : [...rows].sort(by(column))).map(({ row }) => row));
      heads.forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : sorted.startsWith("-") ? "descending" : "ascending"));
    };
    const apply = () => {
      const words = form.elements.find.value.toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = fields.filter((field) => field.name !== "find" && field.value).map((field) => [keys.indexOf(field.name), field.value]);
      let shown = 0;
      for (const { row, cells } of rows) {
        const all = cells.join(" ").toLowerCase();
        row.hidden = !(words.every((word) => all.includes(word)) && chosen.every(([i, value]) => cells[i].split(", ").includes(value)));
        shown += !row.hidden;
      }
      count.textContent = shown === rows.length ? `${shown} ${noun}` : `${shown || "None"} of ${rows.length} ${noun}`;
    };
    const write = () => {
      const state = new URLSearchParams();
      fields.forEach((field) => { if (field.value) state.set(field.name, field.value); });
      if (sorted) state.set("sort", sorted);
      history.replaceState(null, "", String(state) ? `#${state}` : location.pathname + location.search);
    };
    const read = () => {
      const hash = location.hash.slice(1);
      if (hash && document.getElementById(decodeURIComponent(hash))) return;
      const state = new URLSearchParams(hash);
      for (const field of fields) {
        const value = state.get(field.name) || "";
        field.value = field.options && ![...field.options].some((option) => option.value === value) ? "" : value;
      }
      sorted = keys.includes((state.get("sort") || "").replace("-", "")) ? state.get("sort") : "";
      arrange();
      apply();
    };

    heads.forEach((head, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const key = keys[i];
        sorted = sorted === key ? `-${key}` : sorted === `-${key}` ? "" : key;
        arrange();
        write();
      });
    });
    form.addEventListener("input", () => { apply(); write(); });
    form.addEventListener("reset", () => setTimeout(() => { sorted = ""; arrange(); apply(); write(); })); // after the fields
    form.addEventListener("submit", (event) => event.preventDefault());
    addEventListener("hashchange", read);
    form.hidden = false;
    box.classList.add("is-alive");
    read();
  };
  document.querySelectorAll(".sortable").forEach(enliven);
})();
