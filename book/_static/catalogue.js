// Filters a catalogue (of schemes, of methods) by family and by what its select names; the state is in the address. Without this script every entry is shown.
(() => {
  const form = document.querySelector(".catalogue-filter");
  const count = document.querySelector(".catalogue-count");
  const entries = [...document.querySelectorAll(".entry")];
  const sections = new Set(entries.map((entry) => entry.closest("section")));
  if (!form || !count) return;
  const { family } = form.elements;
  const marks = form.querySelector("select");
  const noun = count.textContent.split(" ").pop();

  const apply = () => {
    let shown = 0;
    for (const entry of entries) {
      const has = entry.dataset[marks.name].split("|").filter(Boolean);
      const fits = !marks.value || (marks.value === "nothing" ? !has.length : has.includes(marks.value));
      entry.hidden = !fits || (family.value !== "" && entry.dataset.family !== family.value);
      shown += !entry.hidden;
    }
    for (const section of sections) {
      section.hidden = !section.querySelector(".entry:not([hidden])");
      document.querySelectorAll(`nav li > a[href="#${section.id}"]`).forEach((link) => { link.parentElement.hidden = section.hidden; });
    }
    count.textContent = shown === entries.length ? `${shown} ${noun}`
      : `${shown || "None"} of ${entries.length} ${noun}${shown ? "" : " fits both choices"}`;
  };

  // #family=depth&needs=post-LN, or an entry's name: what the address points to is never hidden.
  const write = () => {
    const state = new URLSearchParams();
    if (family.value) state.set("family", family.value);
    if (marks.value) state.set(marks.name, marks.value);
    history.replaceState(null, "", String(state) ? `#${state}` : location.pathname + location.search);
  };
  const choose = (choices, value, mark) => { // one of the choices that there are, or else the first: all
    const all = [...choices];
    (all.find((choice) => choice.value === value) || all[0])[mark] = true;
  };
  const read = () => {
    const hash = decodeURIComponent(location.hash.slice(1));
    const target = hash && document.getElementById(hash);
    if (target && !target.closest("[hidden]")) return;
    const state = new URLSearchParams(target ? "" : hash);
    choose(family, state.get("family"), "checked");
    choose(marks.options, state.get(marks.name), "selected");
    apply();
    if (target) target.scrollIntoView();
  };

  form.addEventListener("change", () => { apply(); write(); });
  form.addEventListener("reset", () => setTimeout(() => { apply(); write(); })); // after the fields have been reset
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", read);
  form.hidden = false;
  read();
})();
