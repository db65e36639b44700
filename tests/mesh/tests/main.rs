//! What ships in `deploy/`, on real control planes. `./build.sh mesh` runs it.

mod calls;
mod envoy_gateway;
mod istio;
