package main

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/booldefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/int64default"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/int64planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/objectplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
)

func (*volumeResource) Schema(_ context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	resp.Schema = schema.Schema{
		Description: "A volume with a disk image. An existing volume is never replaced or changed: import it.",
		Attributes: map[string]schema.Attribute{
			"name": schema.StringAttribute{
				Required: true, Description: "Name of the volume.",
				PlanModifiers: []planmodifier.String{stringplanmodifier.RequiresReplace()},
			},
			"target": schema.StringAttribute{
				Optional: true, Computed: true, Description: "Block target. Default: the server's default target.",
				PlanModifiers: []planmodifier.String{
					stringplanmodifier.UseStateForUnknown(), stringplanmodifier.RequiresReplace(),
				},
			},
			"image":      ofImage("Name of an image, as `lvp image list` shows it. The newest one when the volume is made."),
			"image_url":  ofImage("Url of the image. It must belong to a source of the server."),
			"image_type": ofImage("Format of the image. Default: that of the named image, qcow2 for a url."),
			"checksum":   ofImage("Expected digest of the image, sha256:HEX or sha512:HEX."),
			"size_gb": schema.Int64Attribute{
				Optional: true, Computed: true,
				Description:   "Size in GiB. Default: the smallest that fits the image. A larger size grows the volume.",
				PlanModifiers: []planmodifier.Int64{int64planmodifier.UseStateForUnknown()},
			},
			"online": schema.BoolAttribute{
				Optional: true, Computed: true, Default: booldefault.StaticBool(false),
				Description: "Whether it may grow while it is in use. Only LVM targets can do so.",
			},
			"timeout": schema.Int64Attribute{
				Optional: true, Computed: true, Default: int64default.StaticInt64(3600),
				Description: "Seconds for the job; it is cancelled and rolled back after that.",
			},
			"cloud_init": schema.SingleNestedAttribute{
				Optional:    true,
				Description: "Data for cloud-init, on a second volume with `-seed` behind the name.",
				PlanModifiers: []planmodifier.Object{objectplanmodifier.RequiresReplaceIf(
					func(_ context.Context, req planmodifier.ObjectRequest, resp *objectplanmodifier.RequiresReplaceIfFuncResponse) {
						resp.RequiresReplace = true
					}, "A change makes a new volume.", "A change makes a new volume.")},
				Attributes: map[string]schema.Attribute{
					"user_data":      schema.StringAttribute{Required: true, Sensitive: true, Description: "The file `user-data`."},
					"meta_data":      schema.StringAttribute{Optional: true, Sensitive: true, Description: "The file `meta-data`."},
					"network_config": schema.StringAttribute{Optional: true, Sensitive: true, Description: "The file `network-config`."},
				},
			},
			"path":       computed("Device or file on the host."),
			"digest":     computed("SHA-256 of the image, with `sha256:` in front."),
			"job_id":     computed("The job that made the volume."),
			"size_bytes": schema.Int64Attribute{Computed: true, Description: "Size in bytes; LVM rounds up."},
		},
	}
}

// ofImage is an option about the image. Another image needs another volume; after an import, when the option was unknown,
// it is only noted.
func ofImage(text string) schema.StringAttribute {
	words := "Another image makes a new volume."
	return schema.StringAttribute{
		Optional: true, Description: text,
		PlanModifiers: []planmodifier.String{stringplanmodifier.RequiresReplaceIf(
			func(_ context.Context, req planmodifier.StringRequest, resp *stringplanmodifier.RequiresReplaceIfFuncResponse) {
				resp.RequiresReplace = !req.StateValue.IsNull()
			}, words, words)},
	}
}

func computed(text string) schema.StringAttribute {
	return schema.StringAttribute{
		Computed: true, Description: text,
		PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()},
	}
}
