"""The examples of the library's routes for the reference."""

from pathlib import Path

from api_examples import FILE, Story

PATH = "/v1/adapters/{adapter}/questions"


def tell(story: Story) -> None:
    adapter = story.ids["adapter"]
    story(f"POST {PATH}", body={"file": story.ids["file"]}, adapter=adapter, show="id name state")
    story(f"DELETE {PATH}", adapter=adapter, show="id name state")


TELLS = [(Path(__file__).with_name(FILE), tell)]
