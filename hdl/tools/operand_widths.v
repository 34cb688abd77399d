// A map for Yosys's pass `techmap` that makes the widths of operands explicit.
//
// A cell of Yosys extends a narrower operand by itself. Verilog does so too, but its linters warn, because it is often a mistake there. The cells
// that this map leaves have operands of one width, so the Verilog written from them says every extension, and it compares with zero instead of
// using `!` on more than one bit. Products stay as they are: their width is that of both operands together, and linters know that.

`define OPERATOR(NAME, TYPE, CELL, WIDTH) \
(* techmap_celltype = TYPE *) \
module NAME (A, B, Y); \
    parameter A_SIGNED = 0, B_SIGNED = 0, A_WIDTH = 1, B_WIDTH = 1, Y_WIDTH = 1; \
    localparam SIGNED = A_SIGNED && B_SIGNED; \
    localparam WIDER = A_WIDTH > B_WIDTH ? A_WIDTH : B_WIDTH; \
    input [A_WIDTH-1:0] A; \
    input [B_WIDTH-1:0] B; \
    output [Y_WIDTH-1:0] Y; \
    wire _TECHMAP_FAIL_ = A_WIDTH == WIDTH && B_WIDTH == WIDTH; \
    wire [WIDTH-1:0] a, b; \
    generate \
        if (SIGNED) begin \
            assign a = $signed(A); \
            assign b = $signed(B); \
        end else begin \
            assign a = A; \
            assign b = B; \
        end \
    endgenerate \
    CELL #(.A_SIGNED(SIGNED), .B_SIGNED(SIGNED), .A_WIDTH(WIDTH), .B_WIDTH(WIDTH), .Y_WIDTH(Y_WIDTH)) \
        _TECHMAP_REPLACE_ (.A(a), .B(b), .Y(Y)); \
endmodule

`OPERATOR(explicit_add, "$add", \$add , Y_WIDTH)
`OPERATOR(explicit_sub, "$sub", \$sub , Y_WIDTH)
`OPERATOR(explicit_and, "$and", \$and , Y_WIDTH)
`OPERATOR(explicit_or, "$or", \$or , Y_WIDTH)
`OPERATOR(explicit_xor, "$xor", \$xor , Y_WIDTH)
`OPERATOR(explicit_eq, "$eq", \$eq , WIDER)
`OPERATOR(explicit_ne, "$ne", \$ne , WIDER)
`OPERATOR(explicit_lt, "$lt", \$lt , WIDER)
`OPERATOR(explicit_le, "$le", \$le , WIDER)
`OPERATOR(explicit_gt, "$gt", \$gt , WIDER)
`OPERATOR(explicit_ge, "$ge", \$ge , WIDER)

// The width of a shift's distance is its own affair; what is shifted needs the bits of the result, and keeps those that come down from above.
`define SHIFT(NAME, TYPE, CELL) \
(* techmap_celltype = TYPE *) \
module NAME (A, B, Y); \
    parameter A_SIGNED = 0, B_SIGNED = 0, A_WIDTH = 1, B_WIDTH = 1, Y_WIDTH = 1; \
    localparam WIDTH = A_WIDTH > Y_WIDTH ? A_WIDTH : Y_WIDTH; \
    input [A_WIDTH-1:0] A; \
    input [B_WIDTH-1:0] B; \
    output [Y_WIDTH-1:0] Y; \
    wire _TECHMAP_FAIL_ = A_WIDTH == WIDTH && Y_WIDTH == WIDTH; \
    wire [WIDTH-1:0] a, y; \
    generate \
        if (A_SIGNED) assign a = $signed(A); \
        else assign a = A; \
    endgenerate \
    CELL #(.A_SIGNED(A_SIGNED), .B_SIGNED(B_SIGNED), .A_WIDTH(WIDTH), .B_WIDTH(B_WIDTH), .Y_WIDTH(WIDTH)) \
        _TECHMAP_REPLACE_ (.A(a), .B(B), .Y(y)); \
    assign Y = y[Y_WIDTH-1:0]; \
endmodule

`SHIFT(explicit_shl, "$shl", \$shl )
`SHIFT(explicit_shr, "$shr", \$shr )
`SHIFT(explicit_sshr, "$sshr", \$sshr )

(* techmap_celltype = "$logic_not" *)
module explicit_zero (A, Y);
    parameter A_SIGNED = 0, A_WIDTH = 1, Y_WIDTH = 1;
    input [A_WIDTH-1:0] A;
    output [Y_WIDTH-1:0] Y;
    wire _TECHMAP_FAIL_ = A_WIDTH == 1;
    assign Y = A == {A_WIDTH{1'b0}};
endmodule
