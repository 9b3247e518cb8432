# vLLM's own image with Paceline's worker beside it. Build it from the repository's root:
#   docker build -f deploy/vllm.Dockerfile -t paceline-vllm .
# VLLM is a version from 0.26 to 0.32. The wheel is built in the same image, for its Python and C library.
ARG VLLM=v0.26.0
FROM vllm/vllm-openai:${VLLM} AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM vllm/vllm-openai:${VLLM}
COPY --from=build /wheels /wheels
# What the base wants is small; what vLLM has pinned stays, since it is there already.
RUN python3 -m pip install --no-cache-dir /wheels/*.whl && rm -r /wheels
ENTRYPOINT ["paceline", "vllm"]
