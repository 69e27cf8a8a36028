//! Turns the .proto files into Rust without protoc: protox parses them, tonic's generator writes the code.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "types",
        "nodes",
        "operations",
        "peers",
        "mesh",
        "certificates",
        "agents",
        "intents",
        "schemas",
        "slots",
        "preparations",
        "sequences",
        "snapshots",
    ];
    let files = files.map(|name| format!("steep/v1/{name}.proto"));
    let descriptors = protox::compile(&files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("steep.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
