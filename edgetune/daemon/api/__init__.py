"""OpenAI's API over HTTP: paths, schemas, errors and who may ask."""
