"""Typed decisions: the questions of a request, who answers them, and the two APIs that ask so.

    asking.py      the questions of one request, submitted together and answered with probabilities
    decided.py     an answer as probabilities, and the figures that clients read from these
    systemone.py   POST /v1/systemone, the API of TypeSafe, llama.cpp, Ollama and vLLM
    openai.py      POST /v1/decisions, OpenAI's
    questions.py   GET /v1/decisions/questions, what was learned and how well it is answered
    commands.py    edgetune decide
    panel.html     the panel of the daemon's page, with panel.js
"""
