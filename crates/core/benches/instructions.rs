//! Does one operation of the core so many times, for tools that count: `bench/instructions.py`.

mod operations;

#[expect(clippy::disallowed_methods, reason = "the bench is no core: it is told what to do")]
fn main() {
    // Cargo's own `--bench` is left out.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (Some(name), Some(count)) = (arguments.next(), arguments.next().and_then(|text| text.parse::<u64>().ok()))
    else {
        // Run with all other benches or tests: only whether every operation can be done.
        for name in operations::NAMES {
            operations::operation(name)();
            println!("{name}");
        }
        return;
    };
    let mut operation = operations::operation(&name);
    (0..count).for_each(|_| operation());
}
