//! What a hop costs before any code of ours runs: two processes that send each other 150 bytes in turn, over TCP on loopback.
//!
//! Usage: cargo run --release -p kvnode --example hop [ROUND TRIPS]
//!
//! Prints the CPU time of both per round trip, which is two frames of a link, each with a wake-up. A request that another node
//! has to answer can't cost less on this machine than one that is answered at once and this, unless frames carry several.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

const LENGTH: usize = 150;

/// CPU time of this process so far, in ns.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").expect("Linux tells it");
    text.split(' ').next().and_then(|first| first.parse().ok()).expect("a number comes first")
}

/// The half that answers; ends with the other's, and tells it what it took.
fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut bytes = [0; LENGTH];
    let begun = cpu_ns();
    while bytes[0] == 0 {
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes)?;
    }
    stream.write_all(&(cpu_ns() - begun).to_le_bytes())
}

fn main() -> std::io::Result<()> {
    let argument = std::env::args().nth(1).unwrap_or_else(|| "200000".into());
    if argument.contains(':') {
        let stream = TcpStream::connect(argument)?;
        stream.set_nodelay(true)?;
        return echo(stream);
    }
    let Ok(count @ 1..) = argument.parse::<u64>() else {
        eprintln!("usage: hop [ROUND TRIPS]");
        std::process::exit(2);
    };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut other = Command::new(std::env::current_exe()?).arg(listener.local_addr()?.to_string()).spawn()?;
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let (mut bytes, begun, cpu) = ([0; LENGTH], std::time::Instant::now(), cpu_ns());
    for number in 1..=count {
        // The last one says so.
        bytes[0] = u8::from(number == count);
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
    }
    let (took, cpu) = (begun.elapsed(), cpu_ns() - cpu);
    let mut theirs = [0; 8];
    stream.read_exact(&mut theirs)?;
    other.wait()?;
    let each = |ns: u64| ns as f64 / count as f64 / 1000.0;
    let both = each(cpu + u64::from_le_bytes(theirs));
    println!("{both:.1} us of CPU a round trip, {:.1} us from one to the next", each(took.as_nanos() as u64));
    Ok(())
}
