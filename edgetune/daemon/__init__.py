"""A local model server that learns: OpenAI's API over one model, adapters that take over only when they are not worse.

`service.Service` is all of it without HTTP, for an app that embeds it; `api` serves it by OpenAI's API.
"""
