"""The examples of typed questions for the reference: by an encoder that learned one of them."""

from pathlib import Path

from api_examples import FILE, Story

ASKED = "Is it to be on?"
STATES = [f"{way} the {thing}" for thing in ("lamp", "fan", "radio", "pump", "oven") for way in ("start", "stop")]


def tell(story: Story) -> None:
    from edgetune.formats.bundle import open_bundle
    from edgetune.runs.train import train
    questions = {"on": {"type": "noul", "instructions": ASKED}}
    rows = [{"state": state, "questions": questions, "expected": {"on": state.startswith("start")}} for state in STATES]
    train(open_bundle(story.folder / "minilm"), rows, story.folder / "typed", eval="none", answers=False, steps=1,
          rank=4, threads=1, batch_size=8, max_length=48)
    with story.serving(story.folder / "minilm") as encoder:
        added = story.ask("POST /v1/adapters", form={"file": "@typed/adapter.gguf", "run": "@typed/run.json"},
                          client=encoder)
        story.ask(f"POST /v1/adapters/{added.json()['id']}/promote", client=encoder)
        story("GET /v1/decisions/questions", client=encoder)
        story("POST /v1/systemone", body={"state": "start the heater", "questions": questions}, client=encoder)
        story("POST /v1/decisions", body={"input": "start the heater",
                                          "questions": [{"type": "predicate", "name": "on", "instructions": ASKED}]},
              show="model answers type name probability", client=encoder)


TELLS = [(Path(__file__).with_name(FILE), tell)]
