"""The example of /v1/rerank for the reference."""

from api_examples import Example

EXAMPLES = [Example("POST /v1/rerank", "Rank two documents by a question.",
                  body={"query": "is it dark", "documents": ["lamp off", "it is dark"], "top_n": 1}, answer={
                      "object": "list", "model": "minilm", "results": [{"index": 1, "relevance_score": 0.87}],
                      "usage": {"prompt_tokens": 14, "total_tokens": 14}})]
