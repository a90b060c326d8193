"""Buttons that point to the repository: only when its address is known, from the environment.

``GITHUB_REPOSITORY`` ("owner/name") switches on the buttons (source, issue, Colab, Binder) and the site's own address;
``GITHUB_SERVER_URL`` and ``GITHUB_REF_NAME`` (the branch) are read too. Without it, no button points anywhere.
``BOOK_URL`` is the site's address where Pages does not publish it.

Colab opens notebooks of a repository only: it is led to the branch ``published``, to which the workflow pushes the
copies that install what they need (see ``published``). Binder opens the repository itself, installed by ``.binder``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

COPIES = "published"  # the branch of the copies


@dataclass(frozen=True)
class Repository:
    """Where the book's sources live."""

    owner: str
    name: str
    branch: str = "main"
    server: str = "https://github.com"

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"{self.server}/{self.owner}/{self.name}"

    @property
    def site(self) -> str:
        """The address at which Pages publishes the book."""
        host = f"{self.owner.lower()}.github.io"
        return f"https://{host}/" if self.name.lower() == host else f"https://{host}/{self.name}/"

    def buttons(self, path: str) -> list[dict[str, str]]:
        """Return what the page made from the file ``path`` links to."""
        slug, where = f"{self.owner}/{self.name}", quote(path)
        colab, binder = "https://colab.research.google.com/github", "https://mybinder.org/v2/gh"
        found = [
            ("Source", "source", f"{self.url}/blob/{self.branch}/{where}"),
            ("Report a problem", "issue", f"{self.url}/issues/new?title={where}"),
            ("Open in Colab", "run", f"{colab}/{slug}/blob/{COPIES}/{where}"),
            ("Open in Binder", "run", f"{binder}/{slug}/{self.branch}?urlpath=lab/tree/{where}"),
        ]
        shown = found if path.endswith(".ipynb") else found[:2]
        return [{"label": label, "icon": icon, "url": url} for label, icon, url in shown]


def from_environment(environment: Mapping[str, str]) -> Repository | None:
    """Return the repository that the environment names, or None.

    >>> from_environment({"GITHUB_REPOSITORY": "someone/book"}).site
    'https://someone.github.io/book/'
    >>> from_environment({}) is None
    True
    """
    value = environment.get("GITHUB_REPOSITORY", "").strip()
    if not value:
        return None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
        raise ConfigError(f'GITHUB_REPOSITORY must be "owner/name": got {value!r}.')
    owner, name = value.split("/")
    return Repository(
        owner,
        name,
        branch=environment.get("GITHUB_REF_NAME") or "main",
        server=(environment.get("GITHUB_SERVER_URL") or "https://github.com").rstrip("/"),
    )


def site(environment: Mapping[str, str]) -> str:
    """Return the address at which the book is published, with a slash at its end, or "".

    >>> site({"BOOK_URL": "https://books.example/attention", "GITHUB_REPOSITORY": "someone/book"})
    'https://books.example/attention/'
    """
    own, repository = environment.get("BOOK_URL", "").strip(), from_environment(environment)
    if own and not re.match(r"(https?|file)://", own):
        raise ConfigError(f"BOOK_URL must begin with https://, http:// or file://: got {own!r}.")
    return own.rstrip("/") + "/" if own else repository.site if repository else ""


def configure(app: Sphinx, config: Config) -> None:
    """Set the site's own address."""
    config.html_baseurl = site(os.environ) or config.html_baseurl


def add(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Give the template the buttons of the page."""
    repository = from_environment(os.environ)
    known = repository and pagename in app.env.found_docs
    path = os.path.relpath(app.env.doc2path(pagename), app.srcdir).replace(os.sep, "/") if known else ""
    context["repository_buttons"] = repository.buttons(path) if repository and known else []
    context["site_url"] = app.config.html_baseurl
    context["repository_url"] = repository.url if repository else ""


def setup(app: Sphinx) -> None:
    """Connect the two."""
    app.connect("config-inited", configure)
    app.connect("html-page-context", add)
