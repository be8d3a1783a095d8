"""Run as a program: a daemon, the command line and the page with one part more, the toy of tests/fixtures/parts.

A part is found in the folders of the package edgetune.parts; here the fixture's is one of them. It prints what came
through each seam, as JSON, for tests/test_parts.py. Arguments: a model, and an empty folder.
"""

import json
import sys
from pathlib import Path

import edgetune.parts

edgetune.parts.__path__.append(str(Path(__file__).parent / "fixtures" / "parts"))

import httpx  # noqa: E402 (what imports edgetune must do so after the toy is there)
from click.testing import CliRunner  # noqa: E402
from daemons import ASK, CHAT, PATIENCE, daemon  # noqa: E402

import edgetune  # noqa: E402
from edgetune.cli import cli  # noqa: E402
from edgetune.daemon.keys import KeyScope, add_key  # noqa: E402
from edgetune.daemon.kinds.registry import kind_of, kinds  # noqa: E402
from edgetune.daemon.options import DaemonConfig  # noqa: E402
from edgetune.daemon.unit import FILES  # noqa: E402
from edgetune.errors import UsageError  # noqa: E402


def refused(**options):
    try:
        DaemonConfig(**options).check()
    except UsageError as error:
        return error.what
    return ""


def asked(url, text, **options):
    body = {**ASK, **options, "max_tokens": 64, "messages": [{"role": "user", "content": text}]}
    return httpx.post(url + CHAT, json=body, timeout=PATIENCE).json()


def uploaded(url, name):
    form = {"data": {"purpose": "clocks"}, "files": {"file": (name, b"twelve")}}
    return httpx.post(f"{url}/v1/files", **form, timeout=PATIENCE).json()


def main(model, folder):
    late = folder / "time.txt"
    late.write_text("late")
    said = {"command": CliRunner().invoke(cli, ["toy"]).output, "help": CliRunner().invoke(cli, ["--help"]).output,
            "daemon_help": CliRunner().invoke(cli, ["serve", "--help-all"]).output,
            "clocks": edgetune.Clock.name, "dir": "Clock" in dir(edgetune),
            "generate_help": CliRunner().invoke(cli, ["generate", "--help"]).output, "kinds": [*kinds()],
            "work": kind_of("toy").work(None), "refused": refused(toy="a/"), "files": FILES,
            "learn": [refused(learn="toy-nightly"), refused(learn="toys")]}
    with daemon(model, folder / "state", toy=str(late)) as running:
        get = lambda path: httpx.get(running.url + path, timeout=PATIENCE)  # noqa: E731
        service = running.service
        said |= {"route": get("/v1/toy").json(), "error": get("/v1/toy/no").json(),
                 "device": get("/v1/device").json()["toy"], "jobs": get("/v1/device").json()["toy_jobs"],
                 "schema": get("/openapi.json").json()["components"]["schemas"]["DeviceObject"]["properties"]["toy"],
                 "status": CliRunner().invoke(cli, ["status", "--url", running.url]).output,
                 "health": get("/healthz").json()["reasons"], "metrics": get("/metrics").text, "page": get("/").text,
                 "time": asked(running.url, "what time is it")["choices"][0]["message"]["content"],
                 "threads": [running.service.running["toy"].thread.is_alive()], "source": running.service.answered}
        said |= {"chat": asked(running.url, "on"), "tool": service.tool({"type": "clock"}),
                 "clock": uploaded(running.url, "a.clock"), "watch": uploaded(running.url, "a.watch")}
        service.files.delete(said["clock"]["id"])
        said |= {"models": [*service.models()], "chosen": asked(running.url, "on", model="any-time"),
                 "ticks": get("/openapi.json").json()["components"]["schemas"]["AdapterObject"]["properties"]["ticks"],
                 "needed": any(is_needed("late") for is_needed in service.adapters.needed)}
        said["forgotten"] = service.running["toy"].forgotten
        said["seen"] = [question.messages[-1]["content"] for question in service.running["toy"].seen]
        begun = httpx.post(running.url + "/v1/learn", json={"toys": True}, timeout=PATIENCE).json()
        said |= {"stores": service.proposals.stores, "begin": begun["error"]["message"]}
        thread = running.service.running["toy"].thread
    said["threads"].append(thread.is_alive())
    with daemon(model, folder / "other") as running:
        told = get("/v1/device").json()["toy"]
        said["off"] = [told, "toy" in running.service.running]
    asker = {"Authorization": f"Bearer {add_key(folder / 'keys', 'asker', KeyScope.ANSWER)}"}
    with daemon(model, folder / "state", toy=str(late), key_file=str(folder / "keys")) as running:
        said["admitted"] = [get(path).status_code for path in (
            "/v1/toy", "/v1/toy/refused", "/v1/device")]
        said["scopes"] = [httpx.get(running.url + path, headers=asker, timeout=PATIENCE).status_code
                          for path in ("/v1/toy/hour", "/v1/toy/clock")]
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
