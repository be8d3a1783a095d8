"""Pages for a browser: the main one, a single file with its styles and scripts, and the report of a training."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.responses import Response

from ...errors import NotFoundError
from .completions import TheService
from .errors import JsonRoute, of_type
from .policy import policy_of, report_policy

FOLDER = Path(__file__).parents[1] / "page"
STYLE = re.compile(r'<link rel="stylesheet" href="(\w+\.css)">')
SCRIPT = re.compile(r'<script src="(\w+\.js)"></script>')
router = APIRouter(route_class=JsonRoute)


@router.get("/", response_class=Response, responses=of_type("text/html"))
async def show_page() -> Response:
    """The page, which loads nothing else."""
    html, policy = _page()
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


@router.get("/v1/fine_tuning/jobs/{job}/report", response_class=Response, responses=of_type("text/html"))
def show_report(job: str, service: TheService) -> Response:
    """Returns the report of a training that made an adapter: one HTML file that loads nothing and runs nothing."""
    path = service.jobs.get(job).report
    if path is None:
        raise NotFoundError(f"{job} has no report", "a training has one as long as its adapter exists")
    html = path.read_text("utf-8")
    return HTMLResponse(html, headers={"Content-Security-Policy": report_policy(html)})


@cache
def _page() -> tuple[str, str]:
    """The page and its policy, whose hashes are computed once."""

    def text(found: re.Match[str]) -> str:
        return (FOLDER / found[1]).read_text("utf-8")

    html = (FOLDER / "page.html").read_text("utf-8")
    html = STYLE.sub(lambda found: f"<style>\n{text(found)}</style>", html)
    html = SCRIPT.sub(lambda found: f"<script>\n{text(found)}</script>", html)
    return html, policy_of(html)
