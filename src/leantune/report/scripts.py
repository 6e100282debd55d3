"""The scripts and styles of the page, all of them inside it: nothing is fetched."""

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import vl_convert
from markupsafe import Markup

from leantune.errors import BadInput
from leantune.report.charts import VERSION

HERE = Path(__file__).parent


def scripts() -> dict[str, Markup]:
    """The three scripts of the page: Vega, DataTables, and the page's own."""
    own = (HERE / "page.js").read_text(encoding="utf-8")
    return {name: inline(code) for name, code in (*_libraries().items(), ("page", own))}


def styles() -> tuple[Markup, Markup]:
    """The style of DataTables, and that of the report's pages."""
    return (
        Markup(_itables("dt_bundle.css").replace("</style", "<\\/style")),
        Markup((HERE / "style.css").read_text(encoding="utf-8")),
    )


def inline(script: str) -> Markup:
    """A script that may stand between script tags: nothing in it ends them or opens a comment."""
    return Markup(script.replace("<!--", "<\\!--").replace("</script", "<\\/script"))


@cache
def _libraries() -> dict[str, str]:
    """Vega, and DataTables with its buttons, as bundled for `itables`, whose default export becomes
    `window.DataTable`."""
    vega = vl_convert.javascript_bundle(vl_version=VERSION)  # type: ignore[call-arg]  # the stub wants a snippet
    pattern = r"export\{[^}]*?\b([\w$]+) as default\b[^}]*\};?"
    tables, count = re.subn(pattern, r"window.DataTable=\1;", _itables("dt_bundle.js"))
    if count != 1:
        raise BadInput(
            "the installed itables bundles DataTables in a way not known here; install the version "
            "of the lock"
        )
    return {"vega": vega, "tables": tables}


def _itables(name: str) -> str:
    return (importlib.resources.files("itables") / "html" / name).read_text(encoding="utf-8")


def policy(allowed: Iterable[str]) -> str:
    """A content security policy: these scripts and no other, and nothing from the network."""
    digests = [hashlib.sha256(str(script).encode()).digest() for script in allowed]
    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    told = [*hashes, "'unsafe-eval'"] if hashes else ["'none'"]  # Vega compiles expressions
    return (
        f"default-src 'none'; script-src {' '.join(told)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
