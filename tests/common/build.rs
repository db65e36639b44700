//! The golden files are embedded, and a new one is not among those that the compiler has seen.

fn main() {
    println!("cargo::rerun-if-changed=../providers");
}
