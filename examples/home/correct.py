"""Asks a server the questions of a file of rows, and sends the rows' answers as corrections.

    python examples/home/correct.py examples/home/corrections.jsonl
"""

import json
import sys
from pathlib import Path

import httpx

SERVER = "http://127.0.0.1:8642"

with httpx.Client(base_url=SERVER, timeout=120) as server:
    for line in Path(sys.argv[1]).read_text("utf-8").splitlines():
        row = json.loads(line)
        question = {"messages": [{"role": "user", "content": row["prompt"]}]}
        answer = server.post("/v1/chat/completions", json=question).raise_for_status().json()
        correction = {"completion_id": answer["id"], "correction": row["completion"]}
        feedback = server.post("/v1/feedback", json=correction).raise_for_status().json()
        print(f"{row['prompt']}: {answer['choices'][0]['message']['content']}: {feedback['reason']}")
