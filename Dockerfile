# The image of a flow run, for a Docker, Kubernetes or ECS work pool: see docs/operations.md.
FROM python:3.11-slim

RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY rl_research rl_research
COPY flows flows
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt -e '.[contrib,s3,gcs,azure]'

# What a container is asked to stop with must reach Python, which then commits.
STOPSIGNAL SIGTERM
ENV PYTHONUNBUFFERED=1 DO_NOT_TRACK=1
