"""Clients chat while a job trains and two adapters are promoted.

A daemon on loopback learns two small adapters; every client's answer is asked of each model once, one by one. Then 32
clients ask again and again, first of the idle daemon, then while a job trains and the adapters are promoted in turn. It
fails unless every answer is the one of its own prompt and of the model that the daemon says has answered, the time to
the first token (95 of 100) at most doubles, /healthz answers within a second, training goes on, and the daemon keeps to
its memory.

Sums are rounded otherwise when more is computed together, so an answer may leave the expected one where two tokens are
nearly as likely: then each of its tokens must be within CLOSE of the likeliest, which another answer's are not.
"""

import argparse
import asyncio
import codecs
import json
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from daemons import process
from lab.common import add_usual

from edgetune.daemon.client import Client
from edgetune.serving.llama import LlamaModel

CLOSE = 1.0  # nats between the likeliest token and the one taken: other cells round SmolLM2's by up to 0.4, AMX by 0.45
TOKENS = 24  # of an answer at most
SLOWER = 2.0  # times the idle daemon's time to the first token
HEALTH = 1.0  # seconds at most
MEMORY = 500  # MiB of the daemon with its training process
LONG = ("You are the control of a house with lamps in many rooms. Answer each request with what the lamp must do, "
        "in as few words as you can, and with nothing else. Never explain. ")
STYLES = (lambda lamp, on: json.dumps({"lamp": lamp, "on": on}), lambda lamp, on: f"{'ON' if on else 'OFF'} #{lamp}")


@dataclass
class Heard:
    """One answer, as a client got it."""

    client: int
    asked: str  # model's name
    model: str = ""  # that answered
    text: str = ""
    first: float = 0.0  # seconds to the first text
    error: str = ""


def question(client: int) -> list[dict[str, str]]:
    """Each client has one of its own; some begin alike, with more than others."""
    messages = [{"role": "user", "content": f"Turn lamp {100 + 37 * client} {('on', 'off')[client % 2]}."}]
    return [{"role": "system", "content": LONG}] * (client % 3 == 0) + messages


def rows(style: int) -> str:
    lines = []
    for lamp in range(100, 148):
        messages = [{"role": "user", "content": f"Turn lamp {lamp} {('on', 'off')[lamp % 2]}."},
                    {"role": "assistant", "content": STYLES[style](lamp, lamp % 2 == 0)}]
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines) + "\n"


# ---- trainings -------------------------------------------------------------------------------------------------------


def train(client: Client, folder: Path, style: int, steps: int, seed: int = 0) -> str:
    """The id of a job that was begun."""
    path = folder / f"rows-{style}.jsonl"
    path.write_text(rows(style))
    name = next(model["id"] for model in client.get("/v1/models")["data"])
    options = {"steps": steps, "lr": 2e-3, "batch_size": 8, "max_length": 128, "eval_every": 10**6}
    return client.post("/v1/fine_tuning/jobs", {
        "model": name, "training_file": client.upload(path), "suffix": f"style{style}", "seed": seed,
        "hyperparameters": options})["id"]


def finished(client: Client, job: str) -> tuple[str, int]:
    """The adapter of a job, when it is done, and the memory that the daemon took meanwhile."""
    memory = 0
    while (state := client.get(f"/v1/fine_tuning/jobs/{job}"))["status"] in ("queued", "running"):
        memory = max(memory, client.get("/v1/device")["memory"]["used"])
        time.sleep(0.2)
    if state["status"] != "succeeded":
        sys.exit(f"{job} {state['status']}: {state['error']}")
    return str(state["fine_tuned_model"]), memory


# ---- the clients -----------------------------------------------------------------------------------------------------


async def ask(http: httpx.AsyncClient, model: str, client: int) -> Heard:
    heard = Heard(client, model)
    began = time.monotonic()
    body = {"model": model, "messages": question(client), "max_tokens": TOKENS, "temperature": 0, "stream": True}
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                heard.error = f"{answer.status_code} {(await answer.aread()).decode()}"
                return heard
            ended = False
            async for line in answer.aiter_lines():
                ended = ended or line == "data: [DONE]"
                if line.startswith("data: {"):
                    hear(heard, json.loads(line.removeprefix("data: ")), began)
            heard.error = heard.error or "" if ended else "the stream broke off"
    except httpx.HTTPError as error:
        heard.error = f"{type(error).__name__} {error}"
    return heard


def hear(heard: Heard, event: dict[str, Any], began: float) -> None:
    if "error" in event:
        heard.error = str(event["error"])
        return
    heard.model = event["model"]
    piece = event["choices"][0]["delta"].get("content") or ""
    if piece and not heard.text:
        heard.first = time.monotonic() - began
    heard.text += piece


async def chat(url: str, models: list[str], seconds: float) -> list[Heard]:
    """Every client asks one model, again and again until the time is over."""
    end = time.monotonic() + seconds
    all_heard = []

    async def go_on(client: int, model: str) -> None:
        while time.monotonic() < end:
            all_heard.append(await ask(http, model, client))

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None)) as http:
        await asyncio.gather(*(go_on(client, model) for client, model in enumerate(models)))
    return all_heard


async def one_by_one(url: str, models: list[str], clients: int) -> dict[tuple[str, int], str]:
    """The answer of each model to each client."""
    expected = {}
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        for model in models:
            for client in range(clients):
                heard = await ask(http, model, client)
                if heard.error:
                    sys.exit(f"{model}, client {client}: {heard.error}")
                expected[model, client] = heard.text
    return expected


async def disturbed(url: str, models: list[str], seconds: float, adapters: list[str],
                    job: str) -> tuple[list[Heard], dict[str, Any]]:
    """`chat` while the adapters are promoted in turn; what the daemon said meanwhile."""
    said: dict[str, Any] = {"memory": 0, "health": 0.0, "steps": [], "promoted": []}

    def look(client: Client) -> None:
        start = time.monotonic()
        client.get("/healthz")
        said["health"] = max(said["health"], time.monotonic() - start)
        device = client.get("/v1/device")
        said["memory"] = max(said["memory"], device["memory"]["used"])
        said["steps"].append(((device["job"] or {}).get("progress") or {}).get("step", 0))

    async def watch() -> None:
        begun = time.monotonic()
        left = list(enumerate(adapters, start=1))
        with Client(url) as client:
            while time.monotonic() < begun + seconds:
                await asyncio.to_thread(look, client)
                if left and time.monotonic() > begun + left[0][0] * seconds / (len(adapters) + 1):
                    await asyncio.to_thread(client.post, f"/v1/adapters/{left.pop(0)[1]}/promote")
                    said["promoted"].append((await asyncio.to_thread(client.get, "/v1/adapters"))["serving"])
                await asyncio.sleep(2.0)

    heard, _ = await asyncio.gather(chat(url, models, seconds), watch())
    with Client(url) as client:
        said["job"] = client.get(f"/v1/fine_tuning/jobs/{job}")["status"]
    return heard, said


# ---- the judgement ---------------------------------------------------------------------------------------------------


class Judge:
    """Whether an answer is a greedy one to its prompt, up to rounding; by the model itself, beside the daemon."""

    def __init__(self, model: Path, state: Path) -> None:
        self.served = LlamaModel(model)
        with closing(sqlite3.connect(state / "state.db")) as db:
            for name, folder in db.execute("SELECT id, folder FROM adapters"):
                self.served.load_adapter(state / "adapters" / folder, name)

    def says(self, heard: Heard) -> bool:
        """Whether tokens that are the likeliest or CLOSE to it lead to this answer."""
        self.served.use(heard.model if heard.model in self.served.adapters() else None)
        tokenizer = self.served.tokenizer
        prompt = tokenizer.encode(tokenizer.render(question(heard.client), add_generation_prompt=True), bos=True)
        return self._goes_on(prompt, b"", heard.text, TOKENS)

    def _goes_on(self, tokens: list[int], said: bytes, text: str, left: int) -> bool:
        if left == 0:
            return said.decode("utf-8", "replace") == text
        [(_, rows)] = self.served.cache.feed(tokens, np.arange(len(tokens)) == len(tokens) - 1)
        logits = rows[0].copy()
        for token in np.flatnonzero(logits >= logits.max() - CLOSE).tolist():
            if self.served.tokenizer.is_end(token):
                if said.decode("utf-8", "replace") == text:
                    return True
                continue
            more = said + self.served.printed(token)
            if text.startswith(certain(more)) and self._goes_on([*tokens, token], more, text, left - 1):
                return True
        return False


def certain(said: bytes) -> str:
    """As text, without a character that is not complete."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(said)


def wrong(all_heard: list[Heard], expected: dict[tuple[str, int], str], judge: Judge) -> tuple[list[str], int]:
    """What is wrong, and how many answers differ by rounding."""
    problems = []
    rounded = 0
    seen = dict[tuple[str, int, str], bool]()
    for heard in all_heard:
        place = (heard.model, heard.client)
        if heard.error or not heard.text:
            problems.append(f"client {heard.client} of {heard.asked}: {heard.error or 'no text'}")
        elif place not in expected or (not heard.asked.endswith(":latest") and heard.asked != heard.model):
            problems.append(f"client {heard.client} asked {heard.asked}, {heard.model} answered")
        elif heard.text != expected[place]:
            key = (*place, heard.text)
            seen[key] = seen[key] if key in seen else judge.says(heard)
            rounded += seen[key]
            if not seen[key]:
                problems.append(f"client {heard.client} of {heard.model}: {heard.text!r}, not {expected[place]!r}")
    return problems, rounded


def strangers(expected: dict[tuple[str, int], str], judge: Judge) -> list[str]:
    """Whether the judge would see a mix-up: what an adapter answers to the next client must not pass."""
    problems = []
    for (model, client), text in [item for item in expected.items() if item[0][0] in judge.served.adapters()][::5]:
        other = expected.get((model, client + 1), text)
        if other != text and judge.says(Heard(client, model, model, other)):
            problems.append(f"the judge takes {other!r} for an answer of {model} to client {client}")
    return problems


def first_p95(all_heard: list[Heard]) -> float:
    return float(np.percentile([heard.first for heard in all_heard if heard.first], 95))


def options(parser: argparse.ArgumentParser) -> None:
    """steps: of each of the two small trainings."""
    add_usual(parser, clients=32, seconds=300.0, idle_seconds=100.0, steps=20)


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = ("--threads", 0, "--memory", f"{MEMORY}M")
        with process(args.model.resolve(), folder, *own) as running, Client(running.url) as client:
            url = running.url
            made = [finished(client, train(client, folder, style, args.steps)) for style in range(2)]
            adapters = [adapter for adapter, _ in made]
            memory = max(memory for _, memory in made)
            base = next(found["id"] for found in client.get("/v1/models")["data"])
            print(f"two adapters are trained: {', '.join(adapters)}; {memory >> 20} MiB at most", flush=True)
            expected = asyncio.run(one_by_one(url, [base, *adapters], args.clients))
            print(f"{len(expected)} answers one by one, {len(set(expected.values()))} different", flush=True)
            models = [(base, adapters[0], base + ":latest", base + ":latest")[i % 4] for i in range(args.clients)]
            idle = asyncio.run(chat(url, models, args.idle_seconds))
            print(f"idle: {len(idle)} answers, first token p95 {first_p95(idle):.2f} s", flush=True)
            job = train(client, folder, 0, 10**6, seed=1)
            while not (client.get(f"/v1/fine_tuning/jobs/{job}")["progress"] or {}).get("step"):
                time.sleep(0.5)
            busy, said = asyncio.run(disturbed(url, models, args.seconds, adapters, job))
            print(f"training: {len(busy)} answers, first token p95 {first_p95(busy):.2f} s; steps "
                  f"{said['steps'][0]} to {said['steps'][-1]}; {said['memory'] >> 20} MiB and health in "
                  f"{said['health']:.2f} s at most", flush=True)
            client.post(f"/v1/fine_tuning/jobs/{job}/cancel")
        judge = Judge(args.model, folder / "state")
        problems, rounded = wrong(idle + busy, expected, judge)
        problems += strangers(expected, judge)
    print(f"{rounded} of {len(idle) + len(busy)} answers differ by rounding", flush=True)
    if said["promoted"] != adapters or said["job"] != "running":
        problems.append(f"promoted were {said['promoted']} of {adapters}, the job is {said['job']}")
    if said["steps"][-1] <= said["steps"][0]:
        problems.append("training did not go on")
    if (slower := first_p95(busy) / first_p95(idle)) > SLOWER:
        problems.append(f"the first token takes {slower:.2f} times as long")
    if said["health"] > HEALTH:
        problems.append(f"health took {said['health']:.2f} s")
    if (memory := max(memory, said["memory"])) > MEMORY << 20:
        problems.append(f"the daemon took {memory >> 20} MiB")
    print("\n".join(problems[:20]) or f"all answers are right; the first token takes {slower:.2f} times as long")
    sys.exit(bool(problems))
