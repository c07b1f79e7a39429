//! Plans, applied to code and looked at from every instruction of it.

use proptest::prelude::*;

use super::*;

const BASE: u64 = 0x4000_1000;

/// Takes every place that a pattern allows, with bytes of a counter where it allows any.
struct Anywhere(u8);

impl Room for Anywhere {
    fn take(&mut self, end: u64, pattern: &Pattern) -> Option<u64> {
        let bytes = pattern.0.map(|want| match want {
            Want::Any => {
                self.0 = self.0.wrapping_add(7);
                self.0
            }
            Want::Trap => TRAPPING[usize::from(self.0 & 3)],
            Want::Is(byte) => byte,
        });
        let displacement = i32::from_le_bytes(bytes);
        assert!(pattern.allows(displacement));
        Some(end.wrapping_add_signed(displacement.into()))
    }
}

struct Nowhere;

impl Room for Nowhere {
    fn take(&mut self, _: u64, _: &Pattern) -> Option<u64> {
        None
    }
}

fn plan_of(code: &[u8], site: u64, targets: &[u64]) -> Option<Plan> {
    let is_target = |at: u64| targets.contains(&(at - BASE));
    let known: Vec<u64> = boundaries(code).into_iter().map(|(_, insn)| insn.ip()).collect();
    let view = View {
        base: BASE,
        code,
        is_target: &is_target,
        is_taken: &|_| false,
        known: &known,
        gaps: &[],
        spares: false,
    };
    plan(&view, BASE + site, &mut Anywhere(0))
}

/// The offsets at which instructions begin.
fn boundaries(code: &[u8]) -> Vec<(usize, Instruction)> {
    let mut decoder = decoder(code, BASE);
    let mut all = Vec::new();
    while decoder.can_decode() {
        let insn = decoder.decode();
        all.push(((insn.ip() - BASE) as usize, insn));
    }
    all
}

fn apply(code: &[u8], plan: &Plan) -> Vec<u8> {
    let mut new = code.to_vec();
    for patch in &plan.patches {
        let at = (patch.at - BASE) as usize;
        new[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
    }
    new
}

/// What must hold of a plan for `site`, whatever the code.
fn check(code: &[u8], site: u64, targets: &[u64], plan: &Plan) {
    let new = apply(code, plan);
    let jump_at = |at: u64| decoder(&new[(at - BASE) as usize..], at).decode();
    for (at, insn) in boundaries(code) {
        let (ip, end) = (insn.ip(), at + insn.len());
        let moved = plan.patches.iter().any(|patch| patch.moved.contains(&ip));
        let intact = new[at..end] == code[at..end];
        assert!(intact || moved, "{insn} is not moved, but changed: {plan:x?}");
        let jump = plan.patches.iter().find(|patch| patch.at == ip);
        assert!(jump.is_some() || intact || TRAPPING.contains(&new[at]), "{insn} is lost: {plan:x?}");
        let known = targets.contains(&(at as u64));
        assert!(!known || jump.is_some() || intact, "the target {insn} traps: {plan:x?}");
        if let Some(patch) = jump {
            let near = match jump_at(ip) {
                short if short.is_jmp_short() => jump_at(short.near_branch_target()),
                near => near,
            };
            assert!(near.is_jmp_near() && near.near_branch_target() == patch.stub, "{near}: {plan:x?}");
        }
    }
    let of_site: Vec<_> = plan.patches.iter().filter(|patch| patch.moved.contains(&(BASE + site))).collect();
    assert_eq!(of_site.len(), 1, "{plan:x?}");
    for (i, patch) in plan.patches.iter().enumerate() {
        let others = plan.patches.iter().skip(i + 1);
        assert!(
            others.into_iter().all(|o| o.moved.end <= patch.moved.start || patch.moved.end <= o.moved.start)
        );
    }
}

const CLI: u8 = 0xfa;
const RET: u8 = 0xc3;

#[test]
fn the_tactics_in_order() {
    // cli; mov eax, 1
    let followers = [CLI, 0xb8, 1, 0, 0, 0, RET];
    let plan = plan_of(&followers, 0, &[]).unwrap();
    assert_eq!((plan.tactic, &plan.patches[0].moved), (Tactic::Followers, &(BASE..BASE + 6)));
    assert!(TRAPPING.contains(&plan.patches[0].bytes[1]), "where the MOV began");
    check(&followers, 0, &[], &plan);

    // mov eax, 1; cli; ret; then a function: nothing may be taken from it.
    let before = [0xb8, 1, 0, 0, 0, CLI, RET, 0x55, 0x48, 0x89, 0xe5, 0x5d, RET];
    let plan = plan_of(&before, 5, &[7]).unwrap();
    assert_eq!((plan.tactic, &plan.patches[0].moved), (Tactic::Before, &(BASE..BASE + 6)));
    check(&before, 5, &[7], &plan);

    // sti; hlt; cli, with a target right behind: no room but a short jump's. A long run of MOVs may give way.
    let mut short = vec![0xfb, 0xf4, CLI, 0x48, 0x89, 0xc8];
    short.extend([0xb8, 1, 0, 0, 0, 0xb9, 2, 0, 0, 0, 0xba, 3, 0, 0, 0, RET]);
    let plan = plan_of(&short, 0, &[2, 3]).unwrap();
    assert_eq!(plan.tactic, Tactic::Short);
    check(&short, 0, &[2, 3], &plan);

    // cli, targets all around.
    let punned = [CLI, 0x90, 0x90, 0x90, 0x90, 0x90, RET];
    let plan = plan_of(&punned, 0, &[1, 2, 3, 4, 5]).unwrap();
    assert_eq!((plan.tactic, plan.patches[0].bytes.as_slice()), (Tactic::Punned, &[0xe9][..]));
    assert_eq!(plan.patches[0].stub, (BASE + 5).wrapping_add_signed(i32::from_le_bytes([0x90; 4]).into()));
    check(&punned, 0, &[1, 2, 3, 4, 5], &plan);

    let view = View {
        base: BASE,
        code: &punned,
        is_target: &|_| false,
        is_taken: &|_| false,
        known: &[],
        gaps: &[],
        spares: false,
    };
    assert!(plan_nowhere(&view, BASE).is_none(), "no room, no patch");
}

/// What follows an HLT is jumped to: a jump from before it would leave it where it is, to trap each time.
#[test]
fn a_site_that_is_jumped_to_gets_a_jump_of_its_own() {
    // jne $+20; sti; hlt; cli; jmp $-15; rdtsc; mov r9, rax; mov r10, [rip]; mov al, 2; ret
    let mut code = vec![0x0f, 0x85, 14, 0, 0, 0, 0xfb, 0xf4, CLI, 0xeb, 0xf0];
    code.extend([0x0f, 0x31, 0x49, 0x89, 0xc1, 0x4c, 0x8b, 0x15, 0, 0, 0, 0, 0xb0, 2, RET]);
    let plan = plan_of(&code, 8, &[0, 8]).unwrap();
    assert_eq!((plan.tactic, plan.patches[0].at), (Tactic::Short, BASE + 8));
    check(&code, 8, &[0, 8], &plan);
    let plan = plan_of(&code, 7, &[0, 8]).unwrap();
    assert_eq!((plan.tactic, plan.patches[0].at), (Tactic::Before, BASE));
}

/// There is no room for a short jump at the site, nor for a long one from before it: targets lie on both sides.
#[test]
fn a_short_jump_may_begin_before_the_site() {
    // jae $+2; mov byte [rax], 0; sti; mov byte [rip], 0; add rsp, 0x168; pop rbx; pop r14; ret
    let mut code = vec![0x73, 0, 0xc6, 0, 0, 0xfb, 0xc6, 5, 0, 0, 0, 0, 0];
    code.extend([0x48, 0x81, 0xc4, 0x68, 1, 0, 0, 0x5b, 0x41, 0x5e, RET]);
    let targets = [2, 6];
    let plan = plan_of(&code, 5, &targets).unwrap();
    assert_eq!((plan.tactic, &plan.patches[0].moved), (Tactic::Short, &(BASE + 2..BASE + 6)));
    check(&code, 5, &targets, &plan);
}

/// out 0x80, al; ret: too short for a jump, and there is nothing before it. What gives way is another function's.
#[test]
fn a_short_function_s_neighbour_may_give_way() {
    let mut code = vec![0xe6, 0x80, RET];
    // mov [rip], rsp; lea rsp, [rip]; ret
    code.extend([0x48, 0x89, 0x25, 0, 0, 0, 0, 0x48, 0x8d, 0x25, 0, 0, 0, 0, RET]);
    let plan = plan_of(&code, 0, &[0, 3]).unwrap();
    assert_eq!((plan.tactic, plan.patches.len()), (Tactic::Short, 2));
    check(&code, 0, &[0, 3], &plan);
    // Without symbols nobody knows where it begins.
    let is_target = |at: u64| at == BASE;
    let view = View {
        base: BASE,
        code: &code,
        is_target: &is_target,
        is_taken: &|_| false,
        known: &[],
        gaps: &[],
        spares: false,
    };
    assert_ne!(super::plan(&view, BASE, &mut Anywhere(0)).map(|plan| plan.tactic), Some(Tactic::Short));
}

/// iretq, of which nothing around is known, in a function with INT3s behind it.
#[test]
fn the_space_behind_a_function_holds_a_jump() {
    let mut code = vec![0x48, 0xcf, 0x48, 0xff, 0xc0, RET];
    code.extend([0xcc; 10]);
    code.push(0x55);
    let functions = [BASE - 8..BASE + 6, BASE + 16..BASE + 17, BASE + 0x800..BASE + 0x801];
    let gaps = gaps_around(&functions, BASE);
    assert_eq!(gaps, [BASE + 6..BASE + 16, BASE + 17..BASE + 0x800]);
    let plan_with = |is_target: &dyn Fn(u64) -> bool, is_taken: &dyn Fn(&Range<u64>) -> bool| {
        let view =
            View { base: BASE, code: &code, is_target, is_taken, known: &[], gaps: &gaps, spares: true };
        plan(&view, BASE, &mut Anywhere(0)).filter(|plan| plan.tactic == Tactic::Short)
    };
    let plan = plan_with(&|_| false, &|_| false).unwrap();
    let [short, near] = plan.patches.as_slice() else { panic!("{plan:x?}") };
    assert_eq!((short.bytes.as_slice(), &short.moved), (&[0xeb, 4][..], &(BASE..BASE + 2)));
    assert_eq!((near.at, near.bytes.len(), near.moved.is_empty()), (BASE + 6, 5, true));
    let jump = decoder(&near.bytes, near.at).decode();
    assert_eq!((jump.near_branch_target(), short.stub), (near.stub, near.stub));
    // The next site's jump lies behind it; one that there is no room for, nowhere.
    let next = plan_with(&|_| false, &|range| near.touches(range)).unwrap();
    assert_eq!(next.patches[1].at, BASE + 11);
    let taken = |range: &Range<u64>| near.touches(range) || next.patches[1].touches(range);
    assert_eq!(plan_with(&|_| false, &taken), None);
    // Some jump leads there after all.
    assert_eq!(plan_with(&|at| at == BASE + 10, &|_| false).unwrap().patches[1].at, BASE + 11);
}

fn plan_nowhere(view: &View<'_>, site: u64) -> Option<Plan> {
    plan(view, site, &mut Nowhere)
}

#[test]
fn space_between_functions_may_be_used_but_not_the_next_function() {
    // hlt; jmp $-1; then int3s or NOPs up to the next function.
    for filler in [[0xcc, 0xcc, 0xcc], [0x0f, 0x1f, 0x00], [0x66, 0x90, 0x90]] {
        let mut code = vec![0xf4, 0xeb, 0xfd];
        code.extend(filler);
        code.push(0x55);
        let plan = plan_of(&code, 0, &[6]).unwrap();
        assert_eq!(plan.tactic, Tactic::Followers);
        check(&code, 0, &[6], &plan);
    }
    let code = [0xf4, 0xeb, 0xfd, 0x55, 0x48, 0x89, 0xe5];
    assert_ne!(plan_of(&code, 0, &[]).map(|plan| plan.tactic), Some(Tactic::Followers));
}

#[test]
fn nothing_crosses_the_end_of_the_page() {
    for tail in 0..4 {
        let code = [vec![0x90; 8], vec![CLI], vec![0x90; tail]].concat();
        let plan = plan_of(&code, 8, &[]).unwrap();
        assert_eq!(plan.tactic, Tactic::Before, "{tail}");
        check(&code, 8, &[], &plan);
    }
    assert_eq!(plan_of(&[CLI, 0x90, 0x90, 0x90], 0, &[]), None);
}

#[test]
fn what_cannot_move() {
    let cases: &[&[u8]] = &[
        &[0x0f, 0x05],
        &[0xe2, 0xfe],
        &[0xe3, 0x00],
        &[0xff, 0x14, 0x24],
        &[0xff, 0xd4],
        &[0xc7, 0xf8, 0, 0, 0, 0],
        &[0x0f, 0x01, 0xc1],
        &[0x06],
    ];
    for case in cases {
        assert!(!is_movable(&decoder(case, BASE).decode()), "{case:x?}");
    }
    for case in [
        &[0xe8, 0, 0, 0, 0][..],
        &[0xff, 0x10],
        &[0xff, 0x25, 0, 0, 0, 0],
        &[0x75, 0],
        &[0xc2, 8, 0],
        &[0x48, 0xcf],
    ] {
        assert!(is_movable(&decoder(case, BASE).decode()), "{case:x?}");
    }
}

/// Instructions of all lengths, of every kind that matters here.
const MENU: &[&[u8]] = &[
    &[CLI],
    &[0xfb],
    &[0xf4],
    &[0xee],
    &[0x0f, 0xa2],
    &[0x48, 0xcf],
    &[0x0f, 0x20, 0xd8],
    &[0x44, 0x0f, 0x20, 0xc0],
    &[0x90],
    &[0x50],
    &[RET],
    &[0x31, 0xc0],
    &[0xeb, 0x02],
    &[0x75, 0x04],
    &[0x48, 0x89, 0xc8],
    &[0x8b, 0x44, 0x24, 0x08],
    &[0xb8, 1, 2, 3, 4],
    &[0xe8, 1, 2, 3, 4],
    &[0xff, 0x15, 1, 2, 3, 4],
    &[0x48, 0x8b, 0x05, 1, 2, 3, 4],
    &[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8],
    &[0x0f, 0x05],
    &[0xe2, 0x10],
    &[0xcc],
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    /// Random code with random targets, each instruction of it taken for a site.
    #[test]
    fn every_instruction_stays_moves_or_traps(
        code in prop::collection::vec(prop::sample::select(MENU), 1..24),
        targets in prop::collection::vec(any::<bool>(), 24),
        seed in any::<u8>(),
    ) {
        let code = code.concat();
        let all = boundaries(&code);
        let targets: Vec<u64> = all.iter().zip(targets).filter(|(_, t)| *t).map(|((at, _), _)| *at as u64).collect();
        let is_target = |at: u64| targets.contains(&(at - BASE));
        let known: Vec<u64> = all.iter().map(|(_, insn)| insn.ip()).collect();
        let view = View {
            base: BASE,
            code: &code,
            is_target: &is_target,
            is_taken: &|_| false,
            known: &known,
            gaps: &[],
            spares: false,
        };
        for (site, insn) in all {
            if let Some(found) = plan(&view, insn.ip(), &mut Anywhere(seed)) {
                check(&code, site as u64, &targets, &found);
            }
        }
    }

    /// Any bytes: what does not decode is left alone.
    #[test]
    fn any_bytes_are_planned_or_left(code in prop::collection::vec(any::<u8>(), 0..64), site in 0u64..64) {
        if let Some(found) = plan_of(&code, site, &[])
            && boundaries(&code).iter().any(|(at, _)| *at as u64 == site)
        {
            // From the site on, and up to it if decoding arrives there.
            prop_assert!(found.patches.iter().all(|patch| patch.moved.end <= BASE + code.len() as u64));
        }
    }
}
