"""The architecture, §2 of the report, one idea a module.

Read in this order: `norm`, `rope`, `attention` (plain, for comparison), `mla` (§2.1.1), `router`, `experts`, `moe`,
`balance` (§2.1.2), `block`, `mtp` (§2.2), `transformer`. `loss` is the head's cross-entropy; `count` does the
arithmetic of sizes without torch.

Equations, sections and tables are the technical report's. A number like D13 is a place where report and released code
differ; `data/differences.json` lists all 24 with what is done here.
"""
