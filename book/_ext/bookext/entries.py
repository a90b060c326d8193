"""What the catalogues of schemes and of methods have in common: a form that filters, entries, their facts.

``book/_static/catalogue.js`` brings the form to life; without that script it stays hidden, and every entry is shown.
"""

from __future__ import annotations

import inspect
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from jinja2 import Environment

from attntut.init.register import Entry
from attntut.init.requirements import REQUIREMENTS

from .address import from_environment

GAPS = re.compile(r",?\s*\\q?quad\s*(?![^{]*\})")  # between the parts of a formula that may stand on lines of their own

FORM = """\
<form class="catalogue-filter" hidden aria-label="Filter the catalogue"><fieldset><legend>Family</legend>
{% for value, text in families %}
<label><input type="radio" name="family" value="{{ value }}"{{ "" if value else " checked" }}>{{ text }}</label>
{% endfor %}
</fieldset><p class="marks"><label>{{ label }} <select name="{{ key }}">
{% for value, text in marks %}
<option value="{{ value }}">{{ text }}</option>
{% endfor %}
</select></label> <button type="reset">Show all</button></p></form>
<p class="catalogue-count" role="status">{{ count }} {{ noun }}</p>
"""

ENTRY = """\
<article class="entry" data-family="{{ family }}" data-{{ key }}="{{ marks | join("|") }}" id="{{ name }}">
<div class="entry-head">
<h3><code>{{ name }}</code> <span class="year">{{ year }}</span>
<a class="headerlink" href="#{{ name }}" title="Link to this entry">#</a></h3>

{{ why }}

<div class="entry-formula">

{% for piece in pieces %}
```{math}
{{ piece }}
```

{% endfor %}
</div>
</div>
<dl class="entry-facts">
{% for term, text in facts.items() if text %}
<dt>{{ term }}</dt>
<dd>

{{ text }}

</dd>
{% endfor %}
</dl>
{{ more }}
</article>
"""

jinja = Environment(trim_blocks=True, lstrip_blocks=True)


def form(
    entries: Collection[tuple[Entry, Collection[str]]],
    families: Iterable[str],
    marks: Iterable[str],
    *,
    label: str,
    key: str,
    noun: str,
) -> str:
    """The form, and the number of entries.

    Args:
        entries: each with its marks: what is filtered by, besides the family.
        families, marks: in the order of the form; those that no entry has are left out.
        label, key: of the marks, for readers and in the address.
        noun: what the entries are, in the plural.
    """
    of_family = Counter(each.family for each, _ in entries)
    marked = Counter(mark for _, own in entries for mark in own)
    unmarked = sum(not own for _, own in entries)
    choices = [("", f"all ({len(entries)})")]
    choices += [(name, f"{name} ({of_family[name]})") for name in families if of_family[name]]
    options = [("", "any, or none"), ("nothing", f"none ({unmarked})")]
    options += [(name, f"{name} ({marked[name]})") for name in marks if marked[name]]
    words = dict(label=label, key=key, noun=noun, count=len(entries))
    return jinja.from_string(FORM).render(words, families=choices, marks=options)


def entry(each: Entry, key: str, marks: Collection[str], facts: Mapping[str, str], more: str = "") -> str:
    """What the page says of one, in Markdown: name, year, reason, formula, facts, and more in HTML."""
    words = dict(key=key, marks=marks, facts=facts, more=more, pieces=GAPS.split(each.formula))
    return jinja.from_string(ENTRY).render(vars(each) | words)


def needs(each: Entry) -> str:
    """What it asks of the model, and why."""
    return "\n\n".join(f"**{name}**: {REQUIREMENTS[name].reason}." for name in each.requires) or "nothing of the model."


def source(each: Entry) -> str:
    """Where it comes from; the citation takes the place of the source's authors and year."""
    if not each.cite:
        return f"{each.source}."
    surname, cite = re.split(r"\d", each.cite)[0], f"{{cite:t}}`{each.cite}`"
    text, named = re.subn(rf"\b{surname}\b[^;()]* \(\d{{4}}\)", cite, each.source, count=1, flags=re.IGNORECASE)
    return f"{text}." if named else f"{cite}; {text}."


def chapters(each: Entry, treated: Mapping[str, Collection[str]]) -> str:
    """Links to the pages that treat it, or its family."""
    return ", ".join(f"{{doc}}`/{page}`" for page, names in treated.items() if {each.name, each.family} & {*names})


def options(each: Entry) -> str:
    """The options with their defaults; of those that must be given, the names."""
    told = (name if value is inspect.Parameter.empty else f"{name}={value!r}" for name, value in each.options.items())
    return f"`{', '.join(told)}`" if each.options else ""


def code(each: Entry) -> str:
    """The name of its function, a link where the repository is known."""
    function, repository = inspect.unwrap(each.function), from_environment(os.environ)
    name = f"`{function.__module__}.{function.__qualname__}`"
    if not repository:
        return name
    path, line = function.__module__.replace(".", "/"), inspect.getsourcelines(function)[1]
    return f"[{name}]({repository.url}/blob/{repository.branch}/{path}.py#L{line})"
