"""The service within another program: without HTTP, in an app's own loop; what it says of itself; how it starts."""

import json
import mmap
import os
import stat
import subprocess
import sys

import psutil
import pytest
from services import ROWS, SMALL, answers, open_service, until, upload
from tiny import write_tiny

from edgetune.daemon import memory
from edgetune.errors import FormatError, NotFoundError, UsageError

APP = """
import sys, time
import edgetune
from edgetune.training.config import TrainConfig
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service

rows = [{"prompt": f"turn on lamp {i}", "completion": f'{{"lamp": {i}}}'} for i in range(24)]
options = TrainConfig(rank=4, batch_size=4, max_length=64, lr=0.01, steps=20, threads=1)
with Service("tiny.gguf", DaemonConfig(state="state", threads=1), train=options) as service:
    job, answers = service.jobs.create_from_rows(rows, suffix="app"), 0
    while service.jobs.get(job.id).finished_at is None:  # the app's own loop: it answers meanwhile
        answers += bool(service.chat([{"role": "user", "content": "turn on lamp 3"}], max_tokens=8).text())
        time.sleep(0.05)
    job = service.jobs.get(job.id)
    told = service.feedback.add(prompt="lamp", answer="on", correction="off", model=service.name)
    print(job.status, job.result, answers > 0, told.row is not None, service.health()["status"])
print([m for m in ("fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client", "httpx") if m in sys.modules])
"""


@pytest.mark.slow
def test_an_app_embeds_it_without_the_extra(tmp_path):
    write_tiny(tmp_path / "tiny.gguf", formats="Q8_0")
    done = subprocess.run([sys.executable, "-c", APP], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status, result, *rest = done.stdout.split("\n")[0].split()
    assert (status, rest) == ("succeeded", ["True", "True", "ok"])
    assert result.startswith("ft:tiny:app:")
    assert done.stdout.split("\n")[1] == "[]"


@pytest.mark.dev
def test_models_and_who_answers(folder):
    with open_service(folder) as service:
        adapter, other = (found.id for found in service.adapters.list())
        assert service.models() == ["tiny", "tiny:latest", adapter, other]
        assert (service.adapter_for("tiny"), service.adapter_for(""), service.adapter_for(adapter)) == (
            None, adapter, adapter)
        with pytest.raises(NotFoundError, match="there is no model 'gpt-4o'; there are tiny, tiny:latest, "):
            service.adapter_for("gpt-4o")
        prompt = ROWS[3]["prompt"]
        tickets = {name: service.chat([{"role": "user", "content": prompt}], model=name, max_tokens=12)
                   for name in service.models()[:3]}
        texts = {name: ticket.text() for name, ticket in tickets.items()}
        assert texts["tiny:latest"] == texts[adapter] != texts["tiny"]
        assert [ticket.adapter for ticket in tickets.values()] == [None, adapter, adapter]
        service.adapters.promote(None, "test")
        assert (service.adapter_for("tiny"), service.adapter_for("tiny:latest"), service.adapter_for("")) == (None,) * 3


@pytest.mark.dev
def test_what_it_says_of_itself_and_of_the_memory_of_two_processes(tmp_path):
    with open_service(tmp_path, memory="2G") as service:
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
        assert service.health() == {"status": "ok", "reasons": []}
        said = json.loads(json.dumps(service.device()))
        assert said["memory"]["budget"] == 2 * 2**30
        assert 0 < said["memory"]["used"] < 2 * 2**30
        assert said["device"]["cores"] >= 1
        assert (said["model"], said["job"], said["governor"]) == ("tiny", None, [])
        service.budget = 1
        assert "the budget is 0" in service.health()["reasons"][0]
    with open_service(tmp_path) as service:
        alone = service.memory()
        assert alone == pytest.approx(pss(os.getpid()), rel=0.2)
        job = service.jobs.create("tiny", upload(service), hyperparameters={**SMALL, "steps": 3000})
        until(lambda: (service.jobs.get(job.id).progress or {}).get("step"))
        child = pss(service.jobs.pid)
        assert child > 2**20
        assert service.memory() > child
        service.jobs.cancel(job.id)
    size = 8 << 20
    mapped = tmp_path / "mapped"
    mapped.write_bytes(bytes([1]) * size)
    with mapped.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        assert sum(pages[:: mmap.PAGESIZE]) == size // mmap.PAGESIZE  # all of them are in memory now
        everything, none = memory.in_use(tmp_path)
        assert none == 0
        others, counted = memory.in_use(mapped)
        assert counted == size
        assert everything - others == pytest.approx(size, abs=1 << 20)
        by_page = [each for each in psutil.Process().memory_maps(grouped=False) if each.path != str(mapped)]  # of smaps
        assert others == pytest.approx(sum(each.rss for each in by_page), abs=2 << 20)


def pss(process):
    return int(psutil.Process(process).memory_full_info().pss)


def test_a_start_that_fails_lets_go(tmp_path):
    write_tiny(tmp_path / "tiny.gguf", formats="Q8_0")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(whole[:5000])
    with pytest.raises(FormatError):
        open_service(tmp_path).start()
    (tmp_path / "tiny.gguf").write_bytes(whole)
    with pytest.raises(UsageError, match="the canary"):
        open_service(tmp_path, canary=str(tmp_path / "none.txt")).start()
    with open_service(tmp_path) as service:
        assert answers(service)
        service.stop()
        service.stop()  # twice is fine
