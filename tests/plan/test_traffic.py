"""Counts the memory traffic of a program whose traffic is known by hand."""

from __future__ import annotations

from jaxvision import plan


def test_traffic_of_a_program() -> None:
    """A loop of 5 reads a row of 10 floats and writes a row of another array; a slice is copied to fast memory."""
    text = """
%fused (rows: f32[5,10], i: s32[], out: f32[5,10]) -> f32[5,10] {
  %rows = f32[5,10]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %out = f32[5,10]{1,0} parameter(2)
  %row = f32[1,10]{1,0} dynamic-slice(%rows, %i, %i), dynamic_slice_sizes={1,10}
  %tanh = f32[1,10]{1,0} tanh(%row)
  ROOT %written = f32[5,10]{1,0} dynamic-update-slice(%out, %tanh, %i, %i)
}
%condition (state: (s32[], f32[5,10], f32[5,10])) -> pred[] {
  %limit = s32[] constant(5)
  ROOT %lt = pred[] compare(%k, %limit), direction=LT
}
%body (state: (s32[], f32[5,10], f32[5,10])) -> (s32[], f32[5,10], f32[5,10]) {
  %i = s32[] get-tuple-element(%state), index=0
  %rows = f32[5,10]{1,0} get-tuple-element(%state), index=1
  %out = f32[5,10]{1,0} get-tuple-element(%state), index=2
  %new = f32[5,10]{1,0} fusion(%rows, %i, %out), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[5,10], f32[5,10]) tuple(%i, %rows, %new)
}
ENTRY %main (x: f32[5,10]) -> f32[7] {
  %w = (s32[], f32[5,10], f32[5,10]) while(%init), condition=%condition, body=%body
  %far = f32[70]{0} constant({...})
  %start = (f32[7]{0:S(1)}, f32[70]{0}, u32[]{:S(2)}) slice-start(%far), slice={[0:7]}
  %near = f32[7]{0:S(1)} slice-done(%start)
  ROOT %sum = f32[7]{0:S(1)} add(%near, %near)
}
"""
    loop, condition, copied = 5 * (40 + 4 + 40), 4 + 1, 28  # a condition counts once: its traffic is negligible
    assert plan.count_traffic(text) == loop + condition + copied
