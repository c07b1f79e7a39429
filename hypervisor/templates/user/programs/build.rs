fn main() -> std::io::Result<()> {
    paravane_guest_build::link::program()
}
