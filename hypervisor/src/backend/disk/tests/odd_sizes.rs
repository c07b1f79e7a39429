//! Files whose length is not a multiple of a sector: the disk is rounded up to the next sector, as under QEMU.

use super::*;

#[test]
fn a_disk_is_rounded_up_to_a_sector() {
    let scratch = Scratch::new("odd", 0);
    for (len, sectors) in [(1, 1u64), (511, 1), (512, 1), (513, 2), (5000, 10)] {
        for n in 0..2 {
            std::fs::write(&scratch.0, vec![7; len]).unwrap();
            let mut bench = benches(&scratch).remove(n);
            assert_eq!(bench.slot.link().config().0.bytes()[..8], sectors.to_le_bytes(), "{len} bytes");
            let ring = &mut bench.start(FLUSH, 1, 16)[0];
            // The last sector is read twice, the second time into two buffers whose border is not the end of the file.
            for cut in [512, 3] {
                bench.put(DATA, &[0xee; 1024]);
                let pieces = [(DATA, cut, true), (DATA + 0x200, 512 - cut, true)];
                let pieces = if cut == 512 { &pieces[..1] } else { &pieces[..] };
                assert_eq!(request(&bench, ring, 0, sectors - 1, pieces), ok(513));
                let found =
                    [bench.get(DATA, cut as usize), bench.get(DATA + 0x200, 512 - cut as usize)].concat();
                let data = len - (sectors as usize - 1) * 512;
                assert!(
                    found[..data].iter().all(|b| *b == 7) && found[data..].iter().all(|b| *b == 0),
                    "{len}"
                );
            }
            assert_eq!(request(&bench, ring, 0, sectors, &[(DATA, 512, true)]).status, 1);
            bench.put(DATA, &[9; 512]);
            assert_eq!(request(&bench, ring, 1, sectors - 1, &[(DATA, 512, false)]), ok(1));
            bench.put(DATA, &[0xee; 512]);
            assert_eq!(request(&bench, ring, 0, sectors - 1, &[(DATA, 512, true)]), ok(513));
            assert!(bench.get(DATA, 512) == [9; 512], "what was written past the file's end is read");
            bench.reset();
            assert_eq!(std::fs::metadata(&scratch.0).unwrap().len(), sectors * SECTOR);
        }
    }
}

/// Reading a part of the file that has been cut off is an error.
#[test]
fn a_truncated_file_is_not_rounded_up() {
    let scratch = Scratch::new("odd-cut", 1300);
    for mut bench in benches(&scratch) {
        let ring = &mut bench.start(FLUSH, 1, 16)[0];
        let file = File::options().write(true).open(&scratch.0).unwrap();
        file.set_len(1000).unwrap();
        assert_eq!(request(&bench, ring, 0, 1, &[(DATA, 512, true)]).status, 1);
        file.set_len(1300).unwrap();
        assert_eq!(request(&bench, ring, 0, 0, &[(DATA, 1536, true)]), ok(1537));
        bench.reset();
    }
}

#[test]
fn direct_says_what_size_it_needs() {
    for len in [1000, 5000] {
        let scratch = Scratch::new("odd-direct", len);
        let options = Options { direct: true, ..scratch.options() };
        if crate::backend::disk::file::open(&options).is_err() {
            return crate::testing::skip::skip(
                "direct-io",
                "the file system of the temporary directory has no O_DIRECT",
            );
        }
        let why = Disk::open(&options).err().expect("a part of a sector").to_string();
        assert!(why.contains("direct=on needs") && why.contains("truncate -s %"), "{why}");
    }
}
