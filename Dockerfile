# The full build, for hosts without a static kvnode binary at hand: docker build -t asg4img .
ARG RUST_IMAGE=rust:1.95
FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY crates crates
COPY kvnode kvnode
COPY kvctl kvctl
# .cargo/config.toml makes Linux builds static, so that the binary runs in an empty image.
RUN cargo build --release --locked --bin kvnode && cp target/*/release/kvnode /kvnode

FROM scratch
COPY --from=build /kvnode /kvnode
ENV DATA_DIR=/data
VOLUME /data
EXPOSE 8090
STOPSIGNAL SIGTERM
ENTRYPOINT ["/kvnode"]
