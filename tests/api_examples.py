"""The requests that docs/reference/http-api.md shows, with their answers.

`tell` is what a client asks a daemon, one after the other; a part's is `tell` in tests/parts/NAME/tables.py.
docs/tools/api_answers.py tells it to SmolLM2 and MiniLM, and writes api_examples.json and the same file of each part;
tests/daemon/test_api_examples.py tells it to tiny models, and compares.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from part_tables import of_parts, options_of_parts

FILE = "api_examples.json"
CUT = "..."  # in place of what an example leaves out; as the name of a field: of more fields
LONGEST = 40  # letters of a text
AT = 1767182400
DURATION = re.compile(r"execution_time|.*_duration")
KINDS = "chatcmpl|cmpl|resp|msg|classify|file|ftjob|ftckpt|ftevent|fb|vs|vsfb|prompt|prop"
IDS = re.compile(rf"\b({KINDS})([-_])[0-9a-f]{{4,}}\b|\b(ft:\w+:\w*)(:)[0-9a-f]{{8}}\b"
                 r"|\b[0-9a-f]{32,}\b|\b(?:[0-9A-Z]{4}-){2}[0-9A-Z]{4}\b")
DIGEST = re.compile(r"^(sha256:)?[0-9a-f]{32,}$")
TIMES = re.compile(r"\b1[6-9]\d{8}\b|\b20\d\d-\d\d-\d\dT[\d:.]+Z")
OFF = '{"device":"lamp","action":"off"}'
ASK = [{"role": "user", "content": "switch the lamp off"}]
SCHEMA = {"enum": ["on", "off"]}
GRADER = {"type": "string_check", "name": "city", "operation": "ilike", "input": "{{ sample.output_text }}",
          "reference": "Oslo"}
ROWS = "".join(json.dumps({"prompt": f"{word} the {thing}", "completion": json.dumps(
    {"device": thing, "action": action}, separators=(",", ":"))}) + "\n"
    for thing in ("lamp", "fan", "radio", "pump", "heater", "oven") for word, action in (
        ("turn on", "on"), ("start", "on"), ("turn off", "off"), ("stop", "off")))
ERROR = {"error": {"message": "messages: is missing; give it", "type": "invalid_request_error", "param": "messages",
                   "code": "invalid_value"}}


@dataclass(frozen=True)
class Example:
    """A request and its answer. route: as the reference has it; asked: the same with its ids; form: of an upload, its
    files as @NAME; to: the file that the answer fills; answer: shortened JSON, None: it is none.
    """

    route: str
    asked: str
    what: str = ""
    body: Any = None
    form: dict[str, str] = field(default_factory=dict)
    to: str = ""
    answer: Any = None

    @property
    def method(self) -> str:
        return self.route.split()[0]


class Story:
    """Asks a daemon, and keeps what was asked as examples, with the whole answers in `answers`.

    folder: has model.gguf, which writes text, and `minilm`, an encoder, and is the working folder. serve: runs a daemon
    of a model with options, and yields its URL. Later requests name things by `ids`.
    """

    def __init__(self, folder: Path, serve: Callable[..., AbstractContextManager[str]]) -> None:
        self.folder = folder
        self._serve = serve
        self._opened = ExitStack()
        self.examples: list[Example] = []
        self.answers: list[Any] = []
        self.ids: dict[str, str] = {}

    @contextmanager
    def serving(self, model: Path, **options: object) -> Iterator[httpx.Client]:
        """A client of a daemon."""
        with self._serve(model, **options) as url, httpx.Client(base_url=url, timeout=600) as client:
            yield client

    @contextmanager
    def main(self) -> Iterator[Story]:
        """Serves model.gguf with all that parts serve."""
        model = self.folder / "model.gguf"
        with self.serving(model, embeddings=str(self.folder / "minilm"), context=512,
                          **options_of_parts(model, self.folder)) as self.client:
            yield self

    def __call__(self, route: str, what: str = "", body: Any = None, *, form: dict[str, str] | None = None,
                 show: str = "", query: str = "", to: str = "", client: httpx.Client | None = None,
                 **ids: object) -> Any:
        """Asks, and keeps the example. show: the fields that its answer has, and objects in this; "": all."""
        path = route.split()[1]
        for name, id in ids.items():
            path = path.replace(f"{{{name}}}", str(id))
        said = self.ask(f"{route.split()[0]} {path}{query}", body, form=form, client=client)
        is_json = said.headers.get("content-type") == "application/json"
        answer = said.json() if is_json else None
        self.examples.append(Example(route, path + query, what, body, form or {}, to, shortened(answer, show)))
        self.answers.append(answer)
        return answer

    def ask(self, request: str, body: Any = None, *, form: dict[str, str] | None = None,
            client: httpx.Client | None = None) -> httpx.Response:
        """Asks without an example."""
        method, path = request.split()
        files = {name: self.folder / value[1:] for name, value in (form or {}).items() if value.startswith("@")}
        fields = {name: value for name, value in (form or {}).items() if name not in files}
        said = (client or self.client).request(method, path, json=body, data=fields, files={
            name: (file.name, file.read_bytes()) for name, file in files.items()} or None)
        assert said.status_code == 200, f"{request}: {said.text}"
        return said

    def wait(self, job: str) -> None:
        """Until a job has ended."""
        while self.ask(f"GET /v1/fine_tuning/jobs/{job}").json()["finished_at"] is None:
            time.sleep(0.05)

    def cancel(self, job: str) -> None:
        self.ask(f"POST /v1/fine_tuning/jobs/{job}/cancel")
        self.wait(job)


def told(folder: Path, serve: Callable[..., AbstractContextManager[str]],
         ) -> Iterator[tuple[Path, list[Example], list[Any]]]:
    """Tells all there is to tell; yields (the file, its examples, the whole answers) of the daemon and of each part."""
    story = Story(folder, serve)
    (folder / "rows.jsonl").write_text(ROWS)
    with story.main():
        for file, telling in ((Path(__file__).parent / FILE, tell), *of_parts("TELLS")):
            story.examples = []
            story.answers = []
            telling(story)
            yield file, normal(story.examples), story.answers


def shortened(value: Any, show: str = "") -> Any:
    """JSON with the first item of a list, the beginning of a text, and these fields of all objects in it; "": those
    that are neither null nor empty.
    """
    if isinstance(value, dict):
        kept = {name: shortened(one, show) for name, one in value.items()
                if (name in show.split() if show else one not in (None, "", [], {}))}
        return kept if len(kept) == len(value) else {**kept, CUT: CUT}
    if isinstance(value, list):
        most = 2 if value and isinstance(value[0], int | float) else 1
        return [*(shortened(one, show) for one in value[:most]), *([CUT] if len(value) > most else [])]
    if isinstance(value, str) and len(value) > LONGEST and not DIGEST.search(value):
        return value[:LONGEST] + CUT
    return float(f"{value:.3g}") if isinstance(value, float) else value


def normal(examples: list[Example]) -> list[Example]:
    """With ids that count, one time and one duration."""
    known: dict[str, str] = {}
    counts: Counter[str] = Counter()

    def counted(found: re.Match[str]) -> str:
        """A digest, or a one-time code, is that of its number."""
        kind, dash = found[1] or found[3] or "", found[2] or found[4]
        if found[0] not in known:
            counts[kind] += 1
            digest = sha256(str(counts[kind]).encode()).hexdigest()
            code = "-".join(digest[at:at + 4].upper() for at in (0, 4, 8))
            made = code if "-" in found[0] else digest[:8] + CUT
            known[found[0]] = f"{kind}{dash}{counts[kind]}" if kind else made
        return known[found[0]]

    def timeless(value: dict[str, Any]) -> dict[str, Any]:
        return {name: 1 if DURATION.fullmatch(name) else one for name, one in value.items()}

    text = IDS.sub(counted, json.dumps([asdict(example) for example in examples]))
    text = TIMES.sub(lambda found: "2025-12-31T12:00:00Z" if "T" in found[0] else str(AT), text)
    return [Example(**one) for one in json.loads(text, object_hook=timeless)]


def tell(story: Story) -> None:
    """The daemon without its parts."""
    _answers(story)
    _feedback(story)
    _jobs(story)
    _adapters(story)
    _daemon(story)


def _answers(story: Story) -> None:
    chat = "POST /v1/chat/completions"
    said = story(chat, "Ask the base with its active adapter. [Feedback](#post-v1feedback) corrects this answer.",
                 {"messages": ASK, "max_tokens": 16},
                 show="id object model choices message role content finish_reason usage total_tokens")
    story.ids["answer"] = said["id"]
    story(chat, "Get JSON of a form.", {"messages": ASK, "max_tokens": 16, "response_format": {
        "type": "json_schema", "json_schema": {"name": "lamp", "schema": SCHEMA}}}, show="choices message content")
    story("POST /v1/completions", body={"prompt": "The lamp is", "max_tokens": 8}, show="id choices text finish_reason")
    story("POST /v1/embeddings", body={"input": ["lamp off", "it is dark"]}, show="model data index embedding")
    with story.serving(story.folder / "minilm") as encoder:
        _learn_labels(story, encoder)
        story("POST /v1/classify", "Ask an encoder that has learned labels.", {"input": "lamp off"},
              client=encoder, show="model data label probs")
    said = story("POST /tokenize", body={"content": "lamp off"})
    story("POST /detokenize", body={"tokens": said["tokens"]})
    story("GET /v1/models", show="data id owned_by")
    story("GET /v1/models/{model}", model="model:latest")


def _learn_labels(story: Story, encoder: httpx.Client) -> None:
    """Lets an encoder serve an adapter that tells on from off."""
    from edgetune.formats.bundle import open_bundle
    from edgetune.runs.train import train
    rows = [{"prompt": f"{thing} {way}", "completion": way} for thing in ("lamp", "fan", "radio", "pump", "oven")
            for way in ("on", "off")]
    train(open_bundle(story.folder / "minilm"), rows, story.folder / "labels", eval="none", answers=False, steps=1,
          rank=4, threads=1, batch_size=8, max_length=48)
    added = story.ask("POST /v1/adapters", form={"file": "@labels/adapter.gguf", "run": "@labels/run.json"},
                      client=encoder)
    story.ask(f"POST /v1/adapters/{added.json()['id']}/promote", client=encoder)


def _feedback(story: Story) -> None:
    one = story("POST /v1/feedback", "Correct an answer by its id.",
                {"completion_id": story.ids["answer"], "correction": OFF},
                show="id state held_out question answer rejected reason")["id"]
    story("POST /v1/feedback", "Say that an answer is right.",
          {"prompt": "lamp on", "answer": "On.", "rating": "up"}, show="id state")
    story("POST /v1/feedback", "Say which of two answers is better.",
          {"prompt": "fan on", "answer": "On.", "rejected": "Fan."}, show="id state")
    story("GET /v1/feedback", query="?limit=1",
          show="data id state question answer counts new used held")
    story("GET /v1/feedback/rows", to="feedback.jsonl")
    story("GET /v1/feedback/{feedback_id}", feedback_id=one, show="id row messages")
    story("PATCH /v1/feedback/{feedback_id}", body={"correction": OFF.replace("lamp", "light")}, feedback_id=one,
          show="id answer state")
    story("DELETE /v1/feedback/{feedback_id}", feedback_id=one)
    _proposals(story)
    _drawn(story)
    for number in range(20):
        story.ask("POST /v1/feedback", {"prompt": f"lamp {number} on", "correction": "on"})
    story.cancel(story("POST /v1/learn", show="id status origin")["id"])
    story("PATCH /v1/learn", body={"on": False})


def _proposals(story: Story) -> None:
    def correct(thing: str, wrong: str, right: str) -> None:
        messages = [{"role": "user", "content": f"capital of {thing}?"}, {"role": "assistant", "content": f"{wrong}."},
                    {"role": "user", "content": f"That is wrong, it is {right}."}]
        story.ask("POST /v1/chat/completions", {"messages": messages, "max_tokens": 1})

    correct("Brazil", "Rio", "Brasilia")
    correct("Canada", "Toronto", "Ottawa")
    time.sleep(1)  # the newest is the first
    correct("Australia", "Sydney", "Canberra")
    found = story("GET /v1/proposals", show="data id question answer correction")["data"]
    last, before = found[0]["id"], found[1]["id"]
    story("POST /v1/proposals/{proposal_id}/accept", proposal_id=last, show="id question answer state")
    story("DELETE /v1/proposals/{proposal_id}", proposal_id=before)
    story("DELETE /v1/proposals")


def _drawn(story: Story) -> None:
    story.ask("DELETE /v1/drawn")
    for number in range(60):
        story.ask("POST /v1/chat/completions", {"messages": [{"role": "user", "content": f"light {number}?"}],
                                                "max_tokens": 1})
        found = story.ask("GET /v1/drawn").json()["data"]
        if len(found) > 1:
            break
    asked = story("GET /v1/drawn", show="data messages content counts unrated")["data"][0]["messages"]
    story("POST /v1/drawn", body={"messages": asked, "correction": "on"}, show="id question answer state held_out")
    story("DELETE /v1/drawn")


def _jobs(story: Story) -> None:
    rows = {"purpose": "fine-tune", "file": "@rows.jsonl"}
    story("POST /v1/files/check", form={"file": "@rows.jsonl"}, show="rows usable findings kind")
    file = story("POST /v1/files", form=rows, show="id filename status rows")["id"]
    story.ids["file"] = file
    other = story.ask("POST /v1/files", form=rows).json()["id"]
    story("GET /v1/files", query="?limit=1", show="data id has_more")
    story("GET /v1/files/{file_id}", file_id=file, show="id rows")
    story("GET /v1/files/{file_id}/content", file_id=file, to="rows.jsonl")
    story("DELETE /v1/files/{file_id}", file_id=other)
    options = {"n_epochs": 1, "rank": 8}
    body = {"model": "model", "training_file": file, "suffix": "home",
            "method": {"type": "supervised", "supervised": {"hyperparameters": options}}}
    jobs = "/v1/fine_tuning/jobs"
    job = story(f"POST {jobs}", body=body, show="id status model training_file")["id"]
    story(f"POST {jobs}/{{job}}/pause", job=job, show="id status state")
    story(f"POST {jobs}/{{job}}/resume", job=job, show="id status")
    story.wait(job)
    story(f"GET {jobs}", query="?limit=1", show="data id status has_more")
    story(f"GET {jobs}/{{job}}", job=job, show="id status fine_tuned_model trained_tokens")
    story(f"GET {jobs}/{{job}}/events", job=job, query="?limit=1", show="data level message has_more")
    story(f"GET {jobs}/{{job}}/checkpoints", job=job, query="?limit=1",
          show="data step_number metrics valid_loss has_more")
    story(f"GET {jobs}/{{job}}/report", job=job, to="report.html")
    second = story.ask(f"POST {jobs}", body).json()["id"]
    story(f"POST {jobs}/{{job}}/cancel", job=second, show="id status")
    story.wait(second)
    graders = "POST /v1/fine_tuning/alpha/graders"
    story(f"{graders}/validate", body={"grader": GRADER}, show="grader type")
    story(f"{graders}/run", body={"grader": GRADER, "model_sample": "It is Oslo."},
          show="reward")


def _adapters(story: Story) -> None:
    adapters = "/v1/adapters"
    made = story(f"GET {adapters}", show="data id state serving")["data"][0]["id"]
    story.ids["adapter"] = made
    story(f"GET {adapters}/{{adapter}}", adapter=made, show="id state verdict passed reason")
    story(f"PATCH {adapters}/{{adapter}}", body={"name": "home"}, adapter=made, show="id name state")
    download = story.ask(f"GET {adapters}/{made}/download")
    story(f"GET {adapters}/{{adapter}}/download", adapter=made, to="adapter.zip")
    _unpacked(story.folder, download.content)
    other = [story(f"POST {adapters}", form={"file": "@adapter.gguf"}, show="id state verdict reason")["id"],
             story.ask(f"POST {adapters}", form={"file": "@adapter.gguf", "suffix": "more"}).json()["id"]]
    story(f"POST {adapters}/{{adapter}}/promote", adapter=made)
    story.cancel(story(f"POST {adapters}/{{adapter}}/evaluate", body={"promote": True, "probation": 86400},
                       adapter=other[0], show="id status origin")["id"])
    story.ask(f"POST {adapters}/{other[0]}/promote")
    story(f"POST {adapters}/rollback")
    story(f"POST {adapters}/recover", show="recovered refused")
    story(f"DELETE {adapters}/{{adapter}}", adapter=other[0])
    story("DELETE /v1/models/{model}", model=other[1])


def _unpacked(folder: Path, archive: bytes) -> None:
    from io import BytesIO
    from zipfile import ZipFile
    with ZipFile(BytesIO(archive)) as found:
        name = next(name for name in found.namelist() if name.endswith("adapter.gguf"))
        (folder / "adapter.gguf").write_bytes(found.read(name))


def _daemon(story: Story) -> None:
    story("GET /", to="page.html")
    story("GET /v1/device", show="model learning on state")
    story("GET /healthz", show="status reasons")
    story("GET /metrics", to="metrics.txt")


def read_examples(files: Sequence[Path] = ()) -> list[Example]:
    """Those of these files; of none: those of the daemon, and then those of each part."""
    every = files or (Path(__file__).parent / FILE, *(file for file, _ in of_parts("TELLS")))
    return [Example(**one) for file in every for one in json.loads(file.read_text("utf-8"))]
