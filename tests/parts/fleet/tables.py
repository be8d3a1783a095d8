"""The fleet in the tables of all APIs and commands: options of a daemon that serves one, examples, and arguments."""

import secrets
from pathlib import Path

import httpx
import numpy as np
from api_examples import FILE, Story
from fleets import write_fleet
from slot_folders import write_slot

from edgetune.formats.bundle import open_bundle, write_copy
from edgetune.parts.fleet.membership.device import begin, public_of
from edgetune.parts.fleet.membership.lead import Signing
from edgetune.parts.fleet.rounds import answer
from edgetune.parts.fleet.rounds.places import newest
from edgetune.parts.fleet.rounds.task import open_task

FLEET = "/v1/fleet"
SAID = "device execution finished"


def serving(model, folder):
    """Options of a daemon of this model that serves a fleet."""
    return {"fleet": str(write_fleet(open_bundle(model), folder / "fleet"))}


OPTIONS = (serving,)
ARGUMENTS = (("fleet apply", ["{folder}"]),)


def tell(story: Story) -> None:
    _roll_out(story)
    _round(story)
    _members(story)
    _base(story)


def _roll_out(story: Story) -> None:
    order = story(f"GET {FLEET}/order", show="rollout number files")
    story(f"GET {FLEET}/rollouts/{{rollout}}/{{file}}", rollout=order["rollout"], file=order["files"][0],
          to=Path(order["files"][0]).name)
    report = {"device": "kitchen", "at": 1767182400, "model": "sha256:9f86d081", "rollout": order["rollout"],
              "execution": "closed", "finished": "success", "reason": "6 of 6 are exact",
              "adapter": "ft:model:home:1", "verdict": {"passed": True, "wins": 6, "losses": 0}, "installed": [],
              "superseded": [], "kept": [], "version": 1, "edgetune": "0.1.0"}
    story(f"PUT {FLEET}/devices/{{device}}", body=report, device="kitchen", show=SAID)
    story(f"GET {FLEET}/status",
          show="devices device outcome rollout id status ring")
    story(f"POST {FLEET}/rollout/{{change}}", change="stop", show="id status")


def _round(story: Story) -> None:
    found = story(f"GET {FLEET}/round/{{device}}", device="kitchen")
    number = found["round"]
    story(f"GET {FLEET}/rounds/{{number}}/task/{{file}}", number=number, file="task.json", to="task.json")
    task = open_task(newest(story.folder / "fleet").task, open_bundle(story.folder / "model.gguf"))
    generator = np.random.default_rng(0)
    arrays = {f"{name}.b": generator.normal(0, 1e-2, pair.b.shape).astype(np.float16)
              for name, pair in task.pairs.items()}
    facts = answer.AnswerFacts(answer.VERSION, task.name, "kitchen", task.base.fingerprint, "", "b", 2, 8, 80, 1.0)
    answer.write_answer(story.folder / "answer", facts, arrays, None)
    story(f"PUT {FLEET}/rounds/{{number}}/answers/{{device}}", number=number, device="kitchen",
          form={"answer": f"@answer/{answer.FACTS}", "update": f"@answer/{answer.UPDATE}"})


def _members(story: Story) -> None:
    code = story(f"POST {FLEET}/invites", body={"seconds": 3600})["code"]
    own = begin(str(story.client.base_url), "kitchen")
    story(f"POST {FLEET}/join", body={"code": code, "device": "kitchen", "key": own.public()}, show="device state")
    story(f"GET {FLEET}/members", show="joined data device state")
    members = f"{FLEET}/members/{{device}}"
    story(f"GET {members}", device="kitchen", show="device key state")
    story(f"POST {members}/approve", device="kitchen", show="device state")
    with httpx.Client(base_url=story.client.base_url, auth=Signing("kitchen", own.key)) as device:
        story(f"POST {members}/rotate", body={"key": public_of(own.next_key())}, device="kitchen", client=device,
              show="device key state")
    story(f"POST {members}/revoke", device="kitchen", show="device state")


def _base(story: Story) -> None:
    """The other side of its slot holds the same base, of another name."""
    slot = write_slot(story.folder / "model.gguf", story.folder / secrets.token_hex(4))
    base = open_bundle(story.folder / "model.gguf")
    with slot.filled("b") as beside:
        write_copy(base, beside)
    with story.serving(slot.path, context=512) as other:
        for number in range(40):
            story.ask("POST /v1/feedback", {"prompt": f"lamp {number} on", "correction": "on"}, client=other)
        story("POST /v1/base/evaluate", body={"base": base.fingerprint, "required": "not-worse"}, client=other,
              show="id status origin")


TELLS = [(Path(__file__).with_name(FILE), tell)]
