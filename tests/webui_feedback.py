"""Records of feedback as Open WebUI exports them: FeedbackModel of its models/feedbacks.py, with the fields that its
page fills in, and the whole chat as it stores it.
"""

from typing import Any


def message(id: str, parent: str | None, role: str, content: str, model: str = "smollm2") -> dict[str, Any]:
    found: dict[str, Any] = {"id": id, "parentId": parent, "childrenIds": [], "role": role, "content": content,
                             "timestamp": 1764000000}
    return found if role == "user" else {**found, "model": model, "modelName": model, "modelIdx": 0, "done": True}


def record(rating: int | None, messages: list[dict[str, Any]], rated: str, comment: str = "", reason: str = "",
           arena: bool = False, siblings: list[str] | None = None) -> dict[str, Any]:
    """A thumb (1 or -1) on the message `rated`."""
    by_id = {each["id"]: each for each in messages}
    for each in messages:
        if each["parentId"] is not None:
            by_id[each["parentId"]]["childrenIds"].append(each["id"])
    meta = {"model_id": by_id[rated]["model"], "message_id": rated, "message_index": len(messages), "chat_id": "chat-1",
            "base_models": {by_id[rated]["model"]: None}, **({"arena": True} if arena else {})}
    chat = {"id": "", "title": "A chat", "models": ["smollm2"], "params": {}, "tags": [], "timestamp": 1764000000000,
            "history": {"messages": by_id, "currentId": rated}, "messages": messages, "files": []}
    return {"id": f"feedback-{rated}", "user_id": "user-1", "version": 0, "type": "rating",
            "data": {"rating": rating, "model_id": by_id[rated]["model"], "sibling_model_ids": siblings,
                     "reason": reason, "comment": comment, "tags": ["general"], "details": {"rating": 5}},
            "meta": meta, "snapshot": {"chat": {"id": "chat-1", "user_id": "user-1", "title": "A chat", "chat": chat,
                                                "updated_at": 1764000001, "created_at": 1764000000}},
            "created_at": 1764000002, "updated_at": 1764000002, "user": {"name": "Anna"}}
