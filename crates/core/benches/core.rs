//! Time and allocations of the core's operations: `cargo bench -p kvnode-core --bench core`.

mod operations;

use divan::{AllocProfiler, Bencher};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

#[divan::bench(args = operations::NAMES)]
fn core(bencher: Bencher<'_, '_>, name: &str) {
    bencher.bench_local(operations::operation(name));
}

fn main() {
    divan::main();
}
