//! The reconciliation soak in its short form; `./build.sh soak` runs the full one.

use anyhow::Result;
use gateway_testbed::soak::{self, Plan};

#[tokio::test(flavor = "multi_thread")]
async fn every_word_of_the_gateway_stands_against_the_ledgers() -> Result<()> {
    soak::run(Plan::short()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_word_of_a_fleet_stands_against_the_ledgers() -> Result<()> {
    soak::run(Plan::short()?.of_a_fleet()).await
}
