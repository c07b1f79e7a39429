fn main() -> std::io::Result<()> {
    paravane_guest_build::link::kernel(paravane_guest_build::link::LOW)
}
