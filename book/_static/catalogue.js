// Filters the catalogue of schemes; the state is in the address. Without this script every entry is shown.
(() => {
  const form = document.querySelector(".catalogue-filter");
  const count = document.querySelector(".catalogue-count");
  const entries = [...document.querySelectorAll(".scheme")];
  const sections = new Set(entries.map((entry) => entry.closest("section")));
  if (!form || !count) return;
  const { family, needs } = form.elements;

  const apply = () => {
    let shown = 0;
    for (const entry of entries) {
      const has = entry.dataset.needs.split("|").filter(Boolean);
      const fits = !needs.value || (needs.value === "nothing" ? !has.length : has.includes(needs.value));
      entry.hidden = !fits || (family.value !== "" && entry.dataset.family !== family.value);
      shown += !entry.hidden;
    }
    for (const section of sections) {
      section.hidden = !section.querySelector(".scheme:not([hidden])");
      document.querySelectorAll(`nav li > a[href="#${section.id}"]`).forEach((link) => { link.parentElement.hidden = section.hidden; });
    }
    count.textContent = shown === entries.length ? `${shown} schemes`
      : shown ? `${shown} of ${entries.length} schemes` : `None of ${entries.length} schemes is of this family and has this requirement`;
  };

  // #family=depth&needs=post-LN, or an entry's name: what the address points to is never hidden.
  const write = () => {
    const state = new URLSearchParams();
    if (family.value) state.set("family", family.value);
    if (needs.value) state.set("needs", needs.value);
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
    choose(needs.options, state.get("needs"), "selected");
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
