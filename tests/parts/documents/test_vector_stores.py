"""Vector stores as OpenAI's client uses them: files are uploaded, read in the background, searched, answered from."""

import threading
import time
from types import SimpleNamespace

import httpx
import pytest
from daemons import PATIENCE, daemon, openai_client
from full_disks import full_disk
from indexes import needs_retrieval, small_encoder, write_pdf
from part_tables import needs
from services import open_service, until
from tiny import write_tiny

from edgetune.daemon.options import DaemonConfig
from edgetune.errors import DiskFullError
from edgetune.parts.documents import vector_stores
from edgetune.parts.documents.building import Report

openai = pytest.importorskip("openai")
LAMP = ("lamp.md", b"# Lamp\n\nThe lamp in the hall is red.\n")
CAT = ("cat.txt", b"The cat eats at noon.\n")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    needs_retrieval()
    folder = tmp_path_factory.mktemp("stores")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_stores, "ENCODER", str(small_encoder(folder)))
        with daemon(model, folder / "state", max_upload=1) as found:
            yield found


def upload(client, document):
    return client.files.create(file=document, purpose="assistants")


def waited(client, store):
    """The store, once all of its files are read."""
    until(lambda: client.vector_stores.retrieve(store.id).status == "completed", PATIENCE)
    return client.vector_stores.retrieve(store.id)


def lenient(running, store):
    """Lets any question find something: the encoder is random."""
    running.service.running["documents"].stores.search([store.id], "open it", 1)
    running.service.running["documents"].stores._indexes[store.id].least = 0.0


@pytest.mark.dev
def test_from_upload_to_answer(running, client):
    files = [upload(client, LAMP), upload(client, CAT)]
    assert (files[0].purpose, files[0].filename, files[0].bytes) == ("assistants", "lamp.md", len(LAMP[1]))
    assert client.files.content(files[0].id).read() == LAMP[1]
    store = client.vector_stores.create(name="home", file_ids=[files[0].id], metadata={"a": "b"})
    assert (store.object, store.name, store.metadata) == ("vector_store", "home", {"a": "b"})
    store = waited(client, store)
    assert (store.file_counts.completed, store.file_counts.total) == (1, 1)
    assert store.usage_bytes > 0
    added = client.vector_stores.files.create_and_poll(vector_store_id=store.id, file_id=files[1].id,
                                                       attributes={"by": "me"}, poll_interval_ms=50)
    assert (added.status, added.attributes, added.last_error) == ("completed", {"by": "me"}, None)
    lenient(running, store)
    found = client.vector_stores.search(store.id, query="the cat eats at noon", max_num_results=1)
    assert found.model_dump(exclude={"search_query"})["object"] == "vector_store.search_results.page"
    [result] = found.data
    assert (result.file_id, result.filename, result.attributes) == (files[1].id, "cat.txt", {"by": "me"})
    assert result.content[0].text == "The cat eats at noon."
    assert result.score == 1.0

    client.files.delete(files[1].id)
    waited(client, store)
    assert [file.id for file in client.vector_stores.files.list(store.id)] == [files[0].id]
    lenient(running, store)
    assert {each.filename for each in client.vector_stores.search(store.id, query="cat").data} == {"lamp.md"}


@pytest.mark.dev
@needs("responses")
def test_a_response_cites_the_files_that_it_is_answered_from(running, client):
    file = upload(client, CAT)
    store = waited(client, client.vector_stores.create(file_ids=[file.id]))
    lenient(running, store)
    asked = {"model": "tiny", "input": "the cat eats at noon", "max_output_tokens": 4,
             "tools": [{"type": "file_search", "vector_store_ids": [store.id], "max_num_results": 1}]}
    response = client.responses.create(**asked)
    search, message = response.output
    assert (search.type, search.status, search.queries) == ("file_search_call", "completed", [asked["input"]])
    [cited] = message.content[0].annotations
    assert (cited.type, cited.file_id, cited.filename) == ("file_citation", file.id, "cat.txt")
    assert response.usage.input_tokens > client.responses.create(**{**asked, "tools": []}).usage.input_tokens
    events = list(client.responses.create(**asked, stream=True))
    assert "response.file_search_call.completed" in [event.type for event in events]
    assert events[-1].response.output[1].content[0].annotations[0].file_id == file.id

    missing = {"type": "file_search", "vector_store_ids": ["vs_none"]}
    for tool, what in ((missing, "there is no vector store"), ({"type": "web_search"}, "tools")):
        with pytest.raises(openai.APIStatusError, match=what):
            client.responses.create(model="tiny", input="a", tools=[tool])


def test_lists_changes_and_deletions(client):
    stores = [client.vector_stores.create(name=f"s{number}") for number in range(3)]
    names = [store.name for store in client.vector_stores.list(limit=1)][:3]
    assert names == ["s2", "s1", "s0"]
    assert client.vector_stores.update(stores[0].id, name="new", metadata={"x": "y"}).name == "new"
    assert client.vector_stores.retrieve(stores[0].id).metadata == {"x": "y"}
    assert client.vector_stores.search(stores[0].id, query="cat").data == []
    deleted = client.vector_stores.delete(stores[0].id)
    assert (deleted.object, deleted.deleted) == ("vector_store.deleted", True)
    with pytest.raises(openai.NotFoundError, match="there is no vector store"):
        client.vector_stores.retrieve(stores[0].id)
    file = upload(client, LAMP)
    client.vector_stores.files.create_and_poll(vector_store_id=stores[1].id, file_id=file.id, poll_interval_ms=50)
    gone = client.vector_stores.files.delete(file.id, vector_store_id=stores[1].id)
    assert (gone.object, gone.id) == ("vector_store.file.deleted", file.id)
    assert client.files.retrieve(file.id).id == file.id
    with pytest.raises(openai.NotFoundError, match="has no file"):
        client.vector_stores.files.retrieve(file.id, vector_store_id=stores[1].id)


@pytest.mark.dev
def test_files_are_added_in_batches(client):
    store = client.vector_stores.create(name="batches")
    first = upload(client, LAMP)
    client.vector_stores.files.create_and_poll(vector_store_id=store.id, file_id=first.id, poll_interval_ms=50)
    files = [upload(client, CAT), upload(client, ("bad.pdf", b"%PDF-1.4 nothing"))]
    batches = client.vector_stores.file_batches
    made = batches.create(store.id, file_ids=[file.id for file in files], attributes={"room": "hall"})
    assert (made.object, made.vector_store_id, made.file_counts.total) == ("vector_store.files_batch", store.id, 2)
    ended = batches.poll(made.id, vector_store_id=store.id, poll_interval_ms=50)
    assert (ended.id, ended.status, ended.created_at) == (made.id, "completed", made.created_at)
    assert (ended.file_counts.completed, ended.file_counts.failed) == (1, 1)
    listed = list(batches.list_files(made.id, vector_store_id=store.id, limit=1))  # in pages
    assert [file.id for file in listed] == [file.id for file in files[::-1]]
    assert [file.attributes for file in listed] == [{"room": "hall"}] * 2
    failed, = batches.list_files(made.id, vector_store_id=store.id, filter="failed")
    assert failed.id == files[1].id
    assert batches.cancel(made.id, vector_store_id=store.id).status == "completed"  # too late
    each = batches.create_and_poll(store.id, files=[{"file_id": first.id, "attributes": {"n": 1}}], poll_interval_ms=50)
    assert each.file_counts.completed == 1
    assert client.vector_stores.files.retrieve(first.id, vector_store_id=store.id).attributes == {"n": 1}
    assert client.vector_stores.retrieve(store.id).file_counts.total == 3
    uploaded = batches.upload_and_poll(store.id, files=[CAT, LAMP], poll_interval_ms=50)
    assert uploaded.file_counts.completed == 2


def test_a_batch_that_is_none_is_refused(client):
    store = client.vector_stores.create(name="none")
    batches = client.vector_stores.file_batches
    with pytest.raises(openai.NotFoundError, match="no files of a batch 'vsfb_none'"):
        batches.retrieve("vsfb_none", vector_store_id=store.id)
    with pytest.raises(openai.BadRequestError, match="a batch has file_ids or files; give one of the two"):
        batches.create(store.id)
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        batches.create(store.id, file_ids=["file-none"])
    assert client.vector_stores.retrieve(store.id).file_counts.total == 0


def test_a_file_that_cannot_be_read_says_why(client, tmp_path):
    write_pdf(tmp_path / "good.pdf", ["A kite is in the air."])
    files = [upload(client, ("bad.pdf", b"%PDF-1.4 nothing")), upload(client, tmp_path / "good.pdf")]
    store = waited(client, client.vector_stores.create(file_ids=[file.id for file in files]))
    assert (store.file_counts.failed, store.file_counts.completed) == (1, 1)
    failed = client.vector_stores.files.retrieve(files[0].id, vector_store_id=store.id)
    assert failed.last_error.code == "invalid_file"
    assert "bad.pdf cannot be read as PDF" in failed.last_error.message


@pytest.mark.parametrize(("path", "body", "what"), [
    ("vector_stores", {"file_ids": ["file-none"]}, "there is no file"),
    ("vector_stores", {"chunking_strategy": {"type": "static"}}, "chunking_strategy.type"),
    ("vector_stores", {"expires_after": {"anchor": "last_active_at", "days": 1}}, "expires_after"),
    ("vector_stores/vs_none/search", {"query": "a"}, "there is no vector store"),
    ("vector_stores/vs_none/files", {"file_id": "file-none"}, "there is no file"),
])
def test_errors_have_openais_shape(running, path, body, what):
    answer = httpx.post(f"{running.url}/v1/{path}", json=body, timeout=PATIENCE)
    assert answer.status_code in (400, 404)
    assert what in answer.json()["error"]["message"] + str(answer.json()["error"]["param"])
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_uploads_that_are_no_documents(running, client):
    with pytest.raises(openai.BadRequestError, match="no document that can be read"):
        upload(client, ("a.png", b"x"))
    with pytest.raises(openai.APIStatusError, match="more than 1 MiB"):
        upload(client, ("a.txt", b"x" * (2**20 + 1)))
    rows = client.files.create(file=("rows.jsonl", b'{"prompt": "a", "completion": "b"}\n'), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="has the purpose fine-tune"):
        client.vector_stores.create(file_ids=[rows.id])
    with pytest.raises(openai.BadRequestError, match="holds a document, no rows"):
        client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, LAMP).id)
    left = {path.name for path in running.service.files.folder.iterdir()}
    assert not [name for name in left if name.endswith(".tmp")]


@pytest.mark.dev
def test_stores_survive_a_restart(tmp_path):
    needs_retrieval()
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_stores, "ENCODER", str(small_encoder(tmp_path)))
        with daemon(model, tmp_path / "state") as first, openai_client(first.url) as one:
            store = one.vector_stores.create(name="kept", file_ids=[upload(one, LAMP).id])  # and stops at once
        with daemon(model, tmp_path / "state") as second, openai_client(second.url) as two:
            assert waited(two, store).file_counts.completed == 1
            assert two.vector_stores.retrieve(store.id).name == "kept"


@pytest.fixture
def stores_of(tmp_path, monkeypatch):
    """Makes stores whose files are one document, and whose indexes are made by a function in place of build_of."""
    path = tmp_path / LAMP[0]
    path.write_bytes(LAMP[1])
    files = SimpleNamespace(get=lambda id: SimpleNamespace(id=id, name=LAMP[0], bytes=len(LAMP[1]),
                                                   purpose=vector_stores.PURPOSE),
                            content=lambda id: tmp_path / "gone" if id == "gone" else path)
    monkeypatch.setattr(vector_stores, "Encoding", lambda *_: SimpleNamespace(longest=256, close=lambda: None))
    monkeypatch.setattr(vector_stores, "find_model", lambda name: name)
    made = []

    def make(build_of):
        monkeypatch.setattr(vector_stores, "build_of", build_of)
        made.append(vector_stores.VectorStores(tmp_path, files, DaemonConfig()))
        return made[0]

    yield make
    made[0].close()


def test_closing_leaves_the_rest_to_the_next_start(stores_of):
    """One store is being read, and another waits: neither holds up the end of the daemon."""
    begun = threading.Event()

    def build_of(*_, on_progress):
        begun.set()
        for _ in range(PATIENCE * 20):
            on_progress("indexing", 0, 1)
            time.sleep(0.05)

    stores = stores_of(build_of)
    for _ in range(2):
        stores.create("lamp", {}, ["file-1"])
    assert begun.wait(PATIENCE)
    end = threading.Thread(target=stores.close, daemon=True)
    end.start()
    end.join(PATIENCE / 4)
    assert not end.is_alive()
    assert [store.status for store in stores.list()] == ["in_progress"] * 2


def ended(stores, id):
    for _ in range(PATIENCE * 20):
        if stores.get(id).status == "completed":
            return [file.status for file in stores.get(id).files]
        time.sleep(0.05)
    raise AssertionError(stores.get(id))


def test_files_that_come_meanwhile_are_read_together(stores_of):
    read = []
    go = threading.Event()

    def build_of(documents, *_, **__):
        read.append(len(documents))
        assert go.wait(PATIENCE)
        return Report("")

    stores = stores_of(build_of)
    store = stores.create("lamp", {}, ["file-0"])
    while not read:
        time.sleep(0.01)
    for number in range(1, 9):
        stores.add(store.id, f"file-{number}", {})
    go.set()
    assert ended(stores, store.id) == ["completed"] * 9
    assert read == [1, 9]


def test_a_cancelled_batch_is_not_read(stores_of):
    read = []
    go = threading.Event()

    def build_of(documents, *_, **__):
        read.append([document.name for document in documents])
        assert go.wait(PATIENCE)
        return Report("")

    stores = stores_of(build_of)
    store = stores.create("lamp", {}, ["file-0"])
    while not read:
        time.sleep(0.01)
    stores.add_batch(store.id, {"file-1": {}, "file-2": {}}, "vsfb_1")
    assert stores.cancel(store.id, "vsfb_1").counts()["cancelled"] == 2
    stores.add(store.id, "file-3", {})
    go.set()
    assert ended(stores, store.id) == ["completed", "cancelled", "cancelled", "completed"]
    assert [len(names) for names in read] == [1, 2]
    assert [file.status for file in stores.batch(store.id, "vsfb_1").files] == ["cancelled"] * 2


@pytest.mark.parametrize("refusal", [DiskFullError("the disk is full"), MemoryError("no room")])
def test_a_store_that_the_disk_refuses_is_tried_again_and_named_until_then(stores_of, monkeypatch, refusal):
    monkeypatch.setattr(vector_stores, "RETRY_SECONDS", 0.05)
    refused = [refusal] * 3

    def build_of(*_, **__):
        if refused:
            raise refused.pop()
        return Report("")

    stores = stores_of(build_of)
    store = stores.create("lamp", {}, ["file-1"])
    [reason] = until(stores.reasons)
    assert store.id in reason
    assert str(refusal) in reason
    assert ended(stores, store.id) == ["completed"]
    assert stores.reasons() == []


def test_an_unforeseen_error_fails_one_store_and_is_said(stores_of):
    """The store's deletion is the way out."""
    def build_of(documents, *_, **__):
        if len(documents) > 1:
            raise RuntimeError("a bug")
        return Report("")

    stores = stores_of(build_of)
    poisoned, after = stores.create("a", {}, ["file-1", "file-2"]), stores.create("b", {}, ["file-1"])
    assert ended(stores, after.id) == ["completed"]
    assert [file.status for file in stores.get(poisoned.id).files] == ["failed"] * 2
    [reason] = stores.reasons()
    assert poisoned.id in reason
    assert "RuntimeError: a bug" in reason
    stores.delete(poisoned.id)
    assert stores.reasons() == []


@pytest.mark.dev
@pytest.mark.parametrize("restarts", [False, True])
def test_a_full_disk_holds_no_store_up_for_ever(restarts, tmp_path, monkeypatch):
    """Not one file of the daemon may grow while documents are read: neither an index nor a record."""
    needs_retrieval()
    monkeypatch.setattr(vector_stores, "ENCODER", str(small_encoder(tmp_path)))
    monkeypatch.setattr(vector_stores, "RETRY_SECONDS", 600 if restarts else 0.05, raising=False)
    is_full, build_of = threading.Event(), vector_stores.build_of
    monkeypatch.setattr(vector_stores, "build_of", lambda *given, **options: (
        is_full.wait(PATIENCE) and build_of(*given, **options)))
    with open_service(tmp_path) as service:
        stores = service.running["documents"].stores
        files = [service.files.add(name, vector_stores.PURPOSE, [content]).id for name, content in (LAMP, CAT)]
        made = [stores.create("", {}, [file]).id for file in files]
        with full_disk(0):
            is_full.set()
            until(lambda: len(service.health()["reasons"]) == len(made))
            assert all("cannot write" in reason for reason in service.health()["reasons"])
            assert [store.status for store in stores.list()] == ["in_progress"] * 2
        if not restarts:
            assert [ended(stores, id) for id in made] == [["completed"]] * 2
            assert service.health() == {"status": "ok", "reasons": []}
    if restarts:
        with open_service(tmp_path) as service:
            assert [ended(service.running["documents"].stores, id) for id in made] == [["completed"]] * 2
            assert service.health() == {"status": "ok", "reasons": []}


def test_a_file_that_is_deleted_while_it_is_read_ends_nothing(stores_of):
    stores = stores_of(lambda *_, **__: Report(""))
    for _ in range(2):
        assert ended(stores, stores.create("", {}, ["gone", "file-1"]).id) == ["failed", "completed"]


def test_health_knows_the_thread_that_begins_with_the_first_store(tmp_path):
    with open_service(tmp_path) as service:
        before = set(threading.enumerate())
        stores = service.running["documents"].stores
        stores._begin(stores.create("", {}, []).id)
        begun, = {thread for thread in threading.enumerate() if thread not in before}
        assert begun in {thread for part in service.parts for thread in part.threads()}
        assert service.health() == {"status": "ok", "reasons": []}
