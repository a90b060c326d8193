// The page's few behaviours. Everything on the page can be read without them.
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Light, dark, or as the system.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.querySelector(".theme-switch");
  const names = { auto: "as the system", light: "light", dark: "dark" };
  const paint = () => {
    const mode = root.dataset.mode || "auto";
    root.dataset.theme = mode === "auto" ? (system.matches ? "dark" : "light") : mode;
    button.setAttribute("aria-label", `Colours: ${names[mode]}`);
    button.title = `Colours: ${names[mode]}`;
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    const order = system.matches ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
    root.dataset.mode = order[(order.indexOf(root.dataset.mode || "auto") + 1) % 3];
    try { localStorage.setItem("theme", root.dataset.mode); } catch { /* private window: not kept */ }
    paint();
  });
  system.addEventListener("change", paint);
  paint();

  // The contents on a narrow page: a sheet over the text.
  const nav = document.getElementById("site-nav");
  const menu = document.querySelector(".menu");
  const show = (open) => {
    root.classList.toggle("nav-open", open);
    menu.setAttribute("aria-expanded", open);
    if (open) (nav.querySelector("[aria-current], a") || nav).focus();
    else if (nav.contains(document.activeElement)) menu.focus();
  };
  menu.setAttribute("role", "button");
  menu.setAttribute("aria-expanded", "false");
  menu.setAttribute("aria-controls", "site-nav");
  menu.addEventListener("click", (event) => { event.preventDefault(); show(!root.classList.contains("nav-open")); });
  menu.addEventListener("keydown", (event) => { if (event.key === " ") { event.preventDefault(); menu.click(); } });
  nav.querySelector(".close").addEventListener("click", (event) => { event.preventDefault(); show(false); });
  nav.addEventListener("click", (event) => { if (event.target.closest("li a")) show(false); });
  const current = nav.querySelector("a.current");
  const sections = document.querySelector(".page-toc ul");
  if (current) current.setAttribute("aria-current", "page");
  if (current && sections) current.after(sections.cloneNode(true)); // seen where the page's own list has no room

  // Ctrl-K or ⌘K finds; Escape closes what is open.
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
      const field = all('input[name="q"]').find((input) => input.offsetParent);
      event.preventDefault();
      if (field) field.focus();
      else location.href = document.querySelector(".to-search").href;
    } else if (event.key === "Escape") {
      all("details.links[open]").forEach((box) => { box.open = false; });
      if (root.classList.contains("nav-open")) show(false);
    }
  });
  document.addEventListener("click", (event) => {
    all("details.links[open]").forEach((box) => { if (!box.contains(event.target)) box.open = false; });
  });

  // A link into a folded box opens it.
  const unfold = () => {
    let box = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!box || !box.closest("details")) return;
    for (let outer = box.closest("details"); outer; outer = outer.parentElement.closest("details")) outer.open = true;
    box.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  unfold();

  // Boxes that scroll can be reached with the keyboard, while they scroll; a fading edge says that they do.
  const hint = (box) => box.classList.toggle("at-end", box.scrollLeft + box.clientWidth >= box.scrollWidth - 1);
  const scrolling = () => all("pre, .math-box, .table-box, .cell_output .text_html").forEach((box) => {
    const wide = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("is-wide", wide);
    hint(box);
    if (wide) {
      box.tabIndex = 0;
      if (!box.hasAttribute("role")) { box.setAttribute("role", "group"); box.setAttribute("aria-label", "Scrolls sideways"); }
    } else box.removeAttribute("tabindex");
  });
  addEventListener("resize", scrolling);
  addEventListener("load", scrolling);
  document.addEventListener("scroll", ({ target }) => { if (target !== document) hint(target); }, { capture: true, passive: true });
  scrolling();

  // Copy code.
  if (navigator.clipboard) all("div.cell_input div.highlight, div[class*=highlight-] div.highlight").forEach((box) => {
    if (box.closest(".cell_output")) return;
    const copy = Object.assign(document.createElement("button"), { type: "button", className: "copy button", title: "Copy" });
    copy.setAttribute("aria-label", "Copy this code");
    copy.innerHTML = '<span class="icon icon-copy" aria-hidden="true"></span>';
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(box.querySelector("pre").innerText.replace(/\n$/, ""));
      copy.classList.add("done");
      copy.setAttribute("aria-label", "Copied");
      setTimeout(() => { copy.classList.remove("done"); copy.setAttribute("aria-label", "Copy this code"); }, 1500);
    });
    box.append(copy);
  });

  // Answers to exercises: numbers or one letter, checked here.
  const toNumber = (text) => text.replace("\u2212", "-").split("/").map((part) => (part ? +part : NaN)).reduce((a, b) => a / b);
  all("form.answer").forEach((form) => {
    const bytes = Uint8Array.from(atob(form.dataset.check), (letter) => letter.charCodeAt(0));
    const { right, rtol, traps, questions, ask } = JSON.parse(new TextDecoder().decode(bytes));
    const same = (got, want) => (typeof want === "string" ? got === want
      : got.every((x, i) => Math.abs(x - want[i]) <= rtol * Math.abs(want[i]) + 1e-12));
    const judge = (text) => {
      if (typeof right === "string") {
        if (!text) return "Choose one first.";
      } else {
        text = text.replace(/[()]/g, "").split(/[\s,;]+/).filter(Boolean).map(toNumber);
        if (text.length !== right.length || text.some(Number.isNaN)) {
          return `Give ${right.length === 1 ? "one number, as 0.5" : `${right.length} numbers, as 0.5, 2`}.`;
        }
      }
      if (same(text, right)) return "Right.";
      const trap = traps.findIndex((wrong) => same(text, wrong));
      return trap < 0 ? ask : questions[trap];
    };
    form.querySelector("button").hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const said = judge(new FormData(form).get("answer") || "");
      form.querySelector("output").textContent = said;
      form.classList.toggle("right", said === "Right.");
    });
  });

  // Mark the section in sight.
  const entries = new Map(all(".page-toc a").map((link) => [link.hash.slice(1), link]));
  const headings = all("main section[id]").filter((section) => entries.has(section.id));
  if (headings.length) {
    const mark = () => {
      const top = headings.filter((section) => section.getBoundingClientRect().top < innerHeight * 0.3);
      const now = top.length ? top[top.length - 1].id : headings[0].id;
      entries.forEach((link, id) => {
        if (id === now) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
    };
    let waiting = false;
    addEventListener("scroll", () => {
      if (!waiting) requestAnimationFrame(() => { waiting = false; mark(); });
      waiting = true;
    }, { passive: true });
    mark();
  }

  // Print what is folded, too.
  addEventListener("beforeprint", () => all("main details:not([open])").forEach((box) => {
    box.open = true;
    addEventListener("afterprint", () => { box.open = false; }, { once: true });
  }));
})();
