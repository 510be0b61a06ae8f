# The same steps as on any machine: make install, then hpsearch serve or hpsearch worker.
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN make install VENV=/opt/hpsearch EDITABLE=

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 hpsearch \
  && install -d -o hpsearch -m 700 /tokens /checkpoints /home/hpsearch/.cache
COPY --from=build /opt/hpsearch /opt/hpsearch
ENV PATH=/opt/hpsearch/bin:$PATH PYTHONUNBUFFERED=1
USER hpsearch
WORKDIR /home/hpsearch
EXPOSE 8765
ENTRYPOINT ["hpsearch"]
CMD ["serve", "--host", "0.0.0.0"]
