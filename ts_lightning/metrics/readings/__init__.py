"""How an answer in words is read: one file a kind of answer, pure functions of the text, no torch.

A reading returns its value, or None where the text says none. Those named after a scorer are its official rule with all
its oddities, so that a published figure can be repeated and told from ours; those without a name are ours.

| answer | ours | official |
|---|---|---|
| an option | `choices.read_option` | `choices.llava_option`, `choices.vlmevalkit_option` |
| yes or no | `yes_no.read_yes_no` | `yes_no.pope_yes_no`, `yes_no.mme_yes_no`, `yes_no.lmms_eval_mme_yes_no` |
| a few words | `words.vqa_score` | `words.vqav2_score`, `words.textvqa_score`, `words.gqa_score` |
| a box | `grounding.codecs` | `boxes.lmms_eval_box`, `vlmevalkit_box`, `vlm_r1_box`, `migician_box` |
| MME's sums | | `mme.mme_figures` |
| a caption | | `captions.ptb_words` |
"""
