use std::io::Read;

use super::*;

#[test]
fn text_waits_for_a_slow_reader_and_arrives_whole() {
    let (mut reader, writer) = io::pipe().unwrap();
    // More than any pipe holds.
    let text = vec![b't'; 4 << 20];
    let sent = text.clone();
    let thread = std::thread::spawn(move || send(writer.as_fd(), &sent, &AtomicBool::new(false)));
    let mut got = Vec::new();
    reader.read_to_end(&mut got).unwrap();
    thread.join().unwrap().unwrap();
    assert!(got == text);
}

#[test]
fn writing_to_a_full_pipe_ends_when_the_run_is_to_end() {
    let (_reader, writer) = io::pipe().unwrap();
    let give_up = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // This would block for ever if it did not check `give_up` while it waits.
        let thread = scope.spawn(|| send(writer.as_fd(), &vec![b't'; 4 << 20], &give_up));
        while has_room(writer.as_fd(), 0) {
            std::thread::yield_now();
        }
        give_up.store(true, Ordering::Release);
        assert_eq!(thread.join().unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn a_closed_pipe_is_an_error_and_not_a_panic() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let error = send(writer.as_fd(), b"text", &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}
