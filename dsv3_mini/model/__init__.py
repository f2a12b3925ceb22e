"""The architecture, §2 of the report, one idea a module.

Read in this order: `norm`, `rope`, `attention` (plain, for comparison), `mla` (§2.1.1), `router`, `experts`, `moe`,
`balance` (§2.1.2), `block`, `mtp` (§2.2), `transformer`. `count` does the arithmetic of sizes without torch.
"""
