# Not tried yet.
# docker build -t openworldsam .                               for the CPU
# docker build -t openworldsam --build-arg TORCH=cuda .        for NVIDIA GPUs; run it with --gpus all
# docker run --rm -v "$PWD:/data" openworldsam segment --scene 152 --output output
FROM python:3.12-slim

# cpu: torch without CUDA, much smaller; cuda: torch as it comes
ARG TORCH=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

RUN apt-get update && apt-get install -y --no-install-recommends fonts-dejavu-core g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/openworldsam
COPY . .
RUN if [ "$TORCH" = cpu ]; then set -- --extra-index-url "$TORCH_CPU_INDEX"; fi \
    && pip install --no-cache-dir "$@" -c requirements.txt torch torchvision setuptools wheel \
    && pip install --no-cache-dir --no-build-isolation -c requirements.txt ./tools/detectron2_wheel \
    && SAM2_BUILD_CUDA=0 pip install --no-cache-dir --no-build-isolation -c requirements.txt '.[app]'

# weights that `openworldsam download` fetches stay outside the container
ENV OPENWORLDSAM_WEIGHTS=/data/weights
WORKDIR /data
ENTRYPOINT ["openworldsam"]
CMD ["--help"]
