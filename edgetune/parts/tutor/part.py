"""The tutor: a model answers prompts that people asked, and learns the answers that agree or pass a grader."""

from ...manifest import Manifest

MANIFEST = Manifest(
    name="tutor",
    commands={"Serve": {"feedback": "prompt_commands"}, "Lab": {"lab": "commands"}},
    renamed={"tutor": "lab tutor", "prompts": "feedback prompts"},
    options="options:KeptPromptOptions",
    learn={"tutor": "from kept prompts, by answering them"},
    running="prompts:RunningTutor",
    device="routes:TutorDevice",
    status="prompt_commands:status_rows",
    routes=("routes",),
    kinds=("job",),
    panel=True,
)
