use super::*;

#[test]
fn every_command_in_the_help_is_understood() {
    for (usage, _) in Command::HELP {
        let name = usage.split(' ').next().unwrap();
        assert!(!matches!(Command::parse(name), Command::Unknown(_) | Command::Empty), "{name}");
    }
}

#[test]
fn words_are_separated_by_blanks() {
    assert_eq!(Command::parse("  "), Command::Empty);
    assert_eq!(Command::parse(" bench \t all "), Command::Bench(Some("all")));
    assert_eq!(Command::parse("bench"), Command::Bench(None));
    assert_eq!(Command::parse("helpme"), Command::Unknown("helpme"));
    assert_eq!(Command::parse("disk"), Command::Disk);
    assert_eq!(Command::parse("rng"), Command::Rng(16));
    assert_eq!(Command::parse("vsock"), Command::Vsock(None));
    assert_eq!(Command::parse("vsock 7 word"), Command::Vsock(Some((7, "word"))));
    assert_eq!(Command::parse("ping 10.0.0.1"), Command::Ping("10.0.0.1", 4));
    assert_eq!(Command::parse("disk read 7"), Command::Sectors(Sectors::Read(7)));
    assert_eq!(Command::parse("disk zero 7 9"), Command::Sectors(Sectors::Zero(7, 9)));
    assert_eq!(Command::parse("disk discard 7"), Command::Sectors(Sectors::Discard(7, 1)));
}

#[test]
fn a_wrong_number_is_not_taken_for_one_left_out() {
    let wrong =
        ["rng x", "rng -1", "disk read", "disk raed 7", "disk zero 7 x", "ping 10.0.0.1 x", "vsock x"];
    for line in wrong {
        let Command::Misused(name) = Command::parse(line) else { panic!("{line}") };
        assert!(line.starts_with(name));
        assert!(Command::HELP.iter().any(|(usage, _)| usage.split(' ').next() == Some(name)), "{name}");
    }
}
