"""Pages for a browser: the main one, a single file with its styles and scripts, and the report of a training."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.responses import Response

from ...errors import NotFoundError
from ...manifest import manifests
from ..keys import KeyScope
from .completions import TheService
from .errors import RESPONSES, JsonRoute, of_type
from .security import needs

FOLDER = Path(__file__).parents[1] / "page"
STYLE = re.compile(r'<link rel="stylesheet" href="(\w+\.css)">')
ICON = re.compile(r'<link rel="icon" href="(\w+\.svg)">')
IMAGE = re.compile(r'<img src="(\w+\.svg)" alt="">')
SCRIPT = re.compile(r'<script src="(\w+\.js)"></script>')
PANELS = "<!-- panels of parts -->\n"
SCRIPTS = "<!-- scripts of parts -->\n"
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


@router.head("/", include_in_schema=False)
@router.get("/", response_class=Response, responses=of_type("text/html"))
@needs(KeyScope.OPEN)
async def show_page() -> Response:
    """Returns the daemon's page for browsers, which loads nothing else."""
    html, policy = _page()
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


@router.get("/v1/fine_tuning/jobs/{job}/report", response_class=Response, responses=of_type("text/html"))
def show_report(job: str, service: TheService) -> Response:
    """Returns the report of a training that made an adapter: one HTML file that loads nothing and runs nothing."""
    path = service.jobs.get(job).report
    if path is None:
        raise NotFoundError(f"{job} has no report", "a training has one as long as its adapter exists")
    html = path.read_text("utf-8")
    policy = (f"default-src 'none'; style-src {_hashes(html, 'style')}; base-uri 'none'; form-action 'none'; "
              "frame-ancestors 'none'")  # its styles hold, whichever edgetune wrote it, and nothing runs
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


@cache
def _page() -> tuple[str, str]:
    """The page and its policy, whose hashes are computed once."""

    def text(found: re.Match[str]) -> str:
        return (FOLDER / found[1]).read_text("utf-8")

    html = (FOLDER / "page.html").read_text("utf-8")
    panels = [manifest for manifest in manifests() if manifest.panel]
    sections = "".join(panel.file("panel.html").read_text("utf-8") for panel in panels)
    scripts = "".join(f"<script>\n{panel.file('panel.js').read_text('utf-8')}</script>\n" for panel in panels)
    html = html.replace(PANELS, sections).replace(SCRIPTS, scripts)
    html = ICON.sub(lambda found: f'<link rel="icon" href="data:image/svg+xml,{quote(text(found))}">', html)
    html = IMAGE.sub(text, html)
    html = STYLE.sub(lambda found: f"<style>\n{text(found)}</style>", html)
    html = SCRIPT.sub(lambda found: f"<script>\n{text(found)}</script>", html)
    return html, policy_of(html)


def policy_of(html: str) -> str:
    """A Content-Security-Policy under which the page's own scripts and styles run, and nothing else does."""
    return (f"default-src 'none'; script-src {_hashes(html, 'script')}; style-src {_hashes(html, 'style')}; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            "require-trusted-types-for 'script'")


def _hashes(html: str, tag: str) -> str:
    found = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in found) or "'none'"
