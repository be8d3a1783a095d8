"""The examples of documents for the reference: /v1/rerank and vector stores."""

from pathlib import Path

from api_examples import FILE, Story
from services import until

from edgetune.parts.documents.building import build
from edgetune.parts.documents.options import IndexOptions
from edgetune.parts.documents.search import Encoding

THINGS = (("lamp in the hall", "red", "left"), ("fan in the bedroom", "white", "front"), ("oven", "grey", "door"),
          ("radio in the kitchen", "black", "top"), ("pump of the pool", "blue", "back"), ("bath", "green", "right"))
MANUAL = "".join(f"# The {thing}\n\nThe {thing} is {color}. The button on its {side} switches it off.\n\n"
                 for thing, color, side in THINGS)


def tell(story: Story) -> None:
    story("POST /v1/rerank", body={"query": "is it dark", "documents": ["lamp off", "it is dark"], "top_n": 1},
          show="model results index relevance_score")
    (story.folder / "manual.md").write_text(MANUAL)
    file, other = (story.ask("POST /v1/files", form={"purpose": "assistants", "file": "@manual.md"}).json()["id"]
                   for _ in range(2))
    stores = "/v1/vector_stores"
    store = story(f"POST {stores}", body={"name": "home", "file_ids": [file]}, show="id name status")["id"]
    ids = {"store_id": store}
    story(f"GET {stores}", query="?limit=1", show="data id name has_more")
    story(f"POST {stores}/{{store_id}}", body={"name": "house"}, **ids, show="id name")
    story(f"POST {stores}/{{store_id}}/files", body={"file_id": other}, **ids, show="id vector_store_id status")
    until(lambda: story.ask(f"GET {stores}/{store}").json()["status"] == "completed")
    story(f"GET {stores}/{{store_id}}", **ids, show="id status file_counts completed total")
    story(f"GET {stores}/{{store_id}}/files", query="?limit=1", **ids, show="data id status has_more")
    story(f"GET {stores}/{{store_id}}/files/{{file_id}}", **ids, file_id=file, show="id status usage_bytes")
    story(f"POST {stores}/{{store_id}}/search", body={"query": "Which color has the lamp in the hall?"}, **ids,
          show="data filename score content text source")
    story(f"DELETE {stores}/{{store_id}}/files/{{file_id}}", **ids, file_id=other)
    batches = f"{stores}/{{store_id}}/file_batches"
    batch = story(f"POST {batches}", body={"file_ids": [other]}, **ids, show="id status")["id"]
    story(f"POST {batches}/{{batch_id}}/cancel", **ids, batch_id=batch, show="id status")
    story(f"GET {batches}/{{batch_id}}", **ids, batch_id=batch, show="id status")
    story(f"GET {batches}/{{batch_id}}/files", **ids, batch_id=batch, show="data id status")
    story(f"DELETE {stores}/{{store_id}}", **ids)
    with story.serving(story.folder / "model.gguf", index=str(_index(story.folder))) as client:
        story("GET /v1/documents", client=client)


def _index(folder: Path) -> Path:
    documents = folder / "documents"
    documents.mkdir()
    (documents / "manual.md").write_text(MANUAL)
    encoding = Encoding(folder / "minilm", 1)
    build(documents, folder / "home.index", encoding, IndexOptions(chunk_tokens=90))
    encoding.close()
    return folder / "home.index"


TELLS = [(Path(__file__).with_name(FILE), tell)]
