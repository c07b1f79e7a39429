//! A shell: programs with arguments, pipes, `&`, `;`, `< FILE`, `> FILE`; `exit` and `wait` are its own.

use crate::start::Arguments;
use crate::{eprintln, print, println, sys};

const LINE: usize = 512;
const WORDS: usize = 16;
/// Programs in one pipeline.
const STAGES: usize = 8;

/// `sh -c COMMANDS`, or what is on the standard input.
pub fn main(arguments: Arguments) -> u64 {
    if arguments.get(1) == "-c" {
        return commands(arguments.get(2), 0).unwrap_or_else(|code| code);
    }
    let mut reader = Reader { bytes: [0; LINE], len: 0, taken: 0 };
    let mut status = 0;
    loop {
        print!("$ ");
        let Some(line) = reader.line() else { return status };
        match commands(line, status) {
            Ok(code) => status = code,
            Err(code) => return code,
        }
        // What ended in the background.
        while let Ok((pid @ 1.., _)) = sys::wait(u64::MAX, 1) {
            println!("[{pid}] ended");
        }
    }
}

/// Reads lines.
struct Reader {
    bytes: [u8; LINE],
    len: usize,
    taken: usize,
}

impl Reader {
    fn line(&mut self) -> Option<&str> {
        self.bytes.copy_within(self.taken..self.len, 0);
        self.len -= core::mem::take(&mut self.taken);
        loop {
            if let Some(end) = self.bytes[..self.len].iter().position(|byte| *byte == b'\n') {
                self.taken = end + 1;
                return Some(str::from_utf8(&self.bytes[..end]).unwrap_or_default());
            }
            if self.len == LINE {
                self.len = 0;
            }
            match sys::read(0, &mut self.bytes[self.len..]) {
                Ok(0) => return None,
                Ok(count) => self.len += count as usize,
                Err(sys::EINTR) => {}
                Err(_) => return None,
            }
        }
    }
}

/// Runs commands; `Err` has the code of `exit`.
fn commands(line: &str, before: u64) -> Result<u64, u64> {
    let mut status = before;
    for command in line.split(';') {
        let (command, wait) = match command.trim().strip_suffix('&') {
            Some(command) => (command, false),
            None => (command.trim(), true),
        };
        let mut words = command.split_ascii_whitespace();
        match words.next() {
            None => {}
            Some("exit") => return Err(words.next().map_or(status, |code| code.parse().unwrap_or(2))),
            Some("wait") => while sys::wait(u64::MAX, 0).is_ok() {},
            Some(_) => status = pipeline(command, wait),
        }
    }
    Ok(status)
}

/// Runs programs, each of which reads what the one before it writes; the code of the last one.
fn pipeline(command: &str, wait: bool) -> u64 {
    let mut input = None;
    let mut last = 0;
    let count = command.split('|').count().min(STAGES);
    for (stage, words) in command.split('|').take(STAGES).enumerate() {
        let pipe = match (stage + 1 < count).then(sys::pipe).transpose() {
            Ok(pipe) => pipe,
            Err(errno) => {
                eprintln!("sh: no pipe: error {errno}");
                break;
            }
        };
        match sys::fork() {
            Ok(0) => child(words, input, pipe),
            Ok(pid) => last = pid,
            Err(errno) => eprintln!("sh: cannot fork: error {errno}"),
        }
        input.into_iter().for_each(|file| drop(sys::close(file)));
        input = pipe.map(|[from, to]| {
            let _ = sys::close(to);
            from
        });
    }
    input.into_iter().for_each(|file| drop(sys::close(file)));
    if !wait {
        println!("[{last}]");
        return 0;
    }
    if last == 0 {
        return 1;
    }
    let mut status = 0;
    for _ in 0..count {
        loop {
            match sys::wait(u64::MAX, 0) {
                Ok((pid, of)) => {
                    if pid == last {
                        status = of;
                    }
                    break;
                }
                Err(sys::EINTR) => {}
                Err(_) => break,
            }
        }
    }
    if status & 0x7f != 0 { 128 + u64::from(status & 0x7f) } else { u64::from(status >> 8) }
}

fn child(command: &str, input: Option<u64>, pipe: Option<[u64; 2]>) -> ! {
    if let Some(input) = input {
        let _ = (sys::duplicate(input, 0), sys::close(input));
    }
    if let Some([from, to]) = pipe {
        let _ = (sys::duplicate(to, 1), sys::close(from), sys::close(to));
    }
    let mut list = [""; WORDS];
    let mut count = 0;
    let mut words = command.split_ascii_whitespace();
    while let Some(word) = words.next() {
        let (to, opened) = match word {
            "<" => (0, sys::open(words.next().unwrap_or_default())),
            ">" => (1, sys::open_to_write(words.next().unwrap_or_default())),
            _ => {
                if count < WORDS {
                    list[count] = word;
                    count += 1;
                }
                continue;
            }
        };
        match opened {
            Ok(file) => drop((sys::duplicate(file, to), sys::close(file))),
            Err(errno) => {
                eprintln!("sh: error {errno}");
                sys::exit(1);
            }
        }
    }
    let name = list[0];
    if !name.contains('/') {
        let mut path = [0; 64];
        let bytes = b"/bin/".iter().copied().chain(name.bytes());
        let len = path.iter_mut().zip(bytes).map(|(to, byte)| *to = byte).count();
        sys::execute(str::from_utf8(&path[..len]).unwrap_or_default(), &list[..count]);
    }
    let errno = sys::execute(name, &list[..count]);
    eprintln!("sh: {name}: error {errno}");
    sys::exit(127)
}
