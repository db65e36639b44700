//! What ships in `deploy/`, on real control planes. `./build.sh mesh` runs it.

mod istio;
